"""Compiles device.cu with AMD's compiler, in a separate process because of its own LLVM, and prints the size.

python -m tests.core.kernels.compile_for_amd gfx1030        needs libamdhip64 and libhiprtc-builtins, but no card
"""

import ctypes
import sys

from core.kernels.cuda_dequant import compile_source

LIBRARY = "libamdhip64.so.5"
NAMES = {
    "CreateProgram": "CreateProgram", "DestroyProgram": "DestroyProgram", "CompileProgram": "CompileProgram",
    "GetProgramLogSize": "GetProgramLogSize", "GetProgramLog": "GetProgramLog", "GetCUBINSize": "GetCodeSize",
    "GetCUBIN": "GetCode",
}  # fmt: skip


def main(architecture: str) -> None:
    library = ctypes.CDLL(LIBRARY)
    for nvidia, amd in NAMES.items():
        setattr(library, f"nvrtc{nvidia}", library[f"hiprtc{amd}"])
    code = compile_source(library, f"--offload-arch={architecture}")
    assert code[:4] == b"\x7fELF"
    print(len(code), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
