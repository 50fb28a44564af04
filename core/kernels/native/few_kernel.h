/* Select the few-row kernel of a grouped format. Included by each instruction set after its kernels: one each for the
 * common formats, and `grouped_few` for the rest. */

typedef void (*FewKernel)(const Job *job, int64_t begin, int64_t end);

static FewKernel few_kernel(int format) {
    switch (format) {
        case INT4: return int4_few;
        case INT6: return int6_few;
        case INT4_G32: return int4g32_few;
        case INT4_G32M: return int4g32m_few;
        case INT8_G32: return int8g32_few;
        case INT6_K16: return int6k16_few;
        default: return grouped_few;
    }
}
