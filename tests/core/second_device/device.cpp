// A device for torch that is none of the processor: what tests run on in place of a graphics card.
//
// - Its memory lies in an arena mapped twice. Tensors hold addresses of the mapping that nobody may touch; kernels and
//   copies go through the other. A processor that reads a tensor of the device ends with a fault.
// - A stream is a thread that works behind whoever fills it. What reads values on the host waits for it.
// - Every kernel, copy, event and wait moves a vector clock. A kernel must know of the last write to all that it reads,
//   and of all uses of what it writes: what is not ordered is an error, also where the race would have gone well.
// - Pinned memory is protected, too, from a copy's start until the host has waited for it.
// - Operators run torch's code for the CPU inside of the stream; the shapes of their results come from torch's meta
//   device. Where that cannot tell, the host waits, as it would for a card.
// - As a device with unified memory, it also reads the host's memory where it is told to.
// - While a graph is captured nothing runs: work is kept, memory comes from the graph's pool, which others may share, and
//   whatever would wait for the host is an error. Replayed, it is one launch, ordered against all else; what it uses must
//   still be there.
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#if __has_include(<ATen/core/GraphImplInterface.h>)
#include <ATen/core/GraphImplInterface.h>
#define HAS_GRAPHS
#endif
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/copy.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <sys/mman.h>
#include <torch/library.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

namespace {

using at::Tensor;
using c10::DeviceType;
using c10::IValue;
using Stack = torch::jit::Stack;
using Lock = std::unique_lock<std::recursive_mutex>;

constexpr auto KIND = DeviceType::PrivateUse1;
constexpr int STREAMS = 17; // the default one, and those that are handed out in turn
constexpr size_t PAGE = 4096, LINE = 64, ARENA = size_t(1) << 30;
constexpr int LOST = 1, FAILED = 2;

// ---- order

struct Clock {
  uint64_t at[STREAMS] = {};
  void join(const Clock& other) {
    for (int i = 0; i < STREAMS; i++)
      at[i] = std::max(at[i], other.at[i]);
  }
  bool knows(const Clock& other) const {
    for (int i = 0; i < STREAMS; i++)
      if (at[i] < other.at[i])
        return false;
    return true;
  }
};

struct Block {
  size_t bytes;
  int stream; // on which it was asked for
  Clock before; // of who had the memory earlier
  Clock writes, reads;
  bool read_only = false, hidden = false; // pinned memory under a copy
  bool counted = true; // false once the device was put in as new: what outlives that belongs to no plan
  uint64_t serial = 0; // tells one owner of an address from the next
  uint64_t pool = 0; // of a graph, whose memory stays when tensors end
  bool idle = false; // given back within that pool
};

struct Arena {
  char* seen; // by whoever holds a tensor
  char* real;
  std::map<size_t, Block> blocks;
  std::map<size_t, std::pair<size_t, Clock>> holes; // begin: bytes, uses
  uint64_t given = 0;

  Arena() {
    int file = memfd_create("second device", 0);
    TORCH_CHECK(file >= 0 && ftruncate(file, ARENA) == 0, "no memory for the second device");
    seen = static_cast<char*>(mmap(nullptr, ARENA, PROT_NONE, MAP_SHARED, file, 0));
    real = static_cast<char*>(mmap(nullptr, ARENA, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
    TORCH_CHECK(seen != MAP_FAILED && real != MAP_FAILED, "no memory for the second device");
    close(file);
    holes[0] = {ARENA, Clock()};
  }
  bool has(const void* address) const {
    return address >= seen && address < seen + ARENA;
  }
  std::pair<const size_t, Block>& find(const void* address) {
    auto next = blocks.upper_bound(static_cast<const char*>(address) - seen);
    TORCH_CHECK(next != blocks.begin(), "no memory of the second device");
    return *std::prev(next);
  }
  // The first hole that is large enough and whose former uses `clock` knows.
  char* take(size_t bytes, int stream, const Clock& clock) {
    for (auto hole = holes.begin(); hole != holes.end(); ++hole) {
      auto [begin, rest] = *hole;
      if (rest.first < bytes || !clock.knows(rest.second))
        continue;
      holes.erase(hole);
      if (rest.first > bytes)
        holes[begin + bytes] = {rest.first - bytes, rest.second};
      blocks[begin] = Block{bytes, stream, rest.second};
      blocks[begin].serial = ++given;
      return seen + begin;
    }
    return nullptr;
  }
  void give_back(size_t begin, const Clock& uses) {
    size_t bytes = blocks.at(begin).bytes;
    blocks.erase(begin);
    auto next = holes.lower_bound(begin);
    Clock all = uses;
    if (next != holes.end() && next->first == begin + bytes) {
      bytes += next->second.first;
      all.join(next->second.second);
      next = holes.erase(next);
    }
    if (next != holes.begin()) {
      auto last = std::prev(next);
      if (last->first + last->second.first == begin) {
        last->second.first += bytes;
        last->second.second.join(all);
        return;
      }
    }
    holes[begin] = {bytes, all};
  }
};

struct Line {
  std::deque<std::function<void()>> work;
  std::condition_variable_any woken;
  Clock clock;
  uint64_t done = 0;
  bool started = false;
};

struct Mark {
  int stream = -1;
  uint64_t time = 0;
  Clock clock;
};

// What is captured, in order, and the blocks that it uses: begin, serial number, whether it writes there.
struct Capture {
  uint64_t pool;
  int stream;
  std::thread::id thread;
  std::vector<std::function<void()>> work;
  std::vector<std::tuple<size_t, uint64_t, bool>> uses;
  bool broken = false;
};

struct Device {
  std::recursive_mutex mutex;
  std::condition_variable_any progress;
  Line lines[STREAMS];
  Clock host;
  Arena memory, pinned;
  std::set<size_t> unpinned; // given back while a copy may use them
  size_t capacity = ARENA, others = 0, used = 0, peak = 0, pin_limit = ARENA, locked = 0;
  double limit = 1.0, link = 0; // bytes per second, 0 = at once
  double lag = 0; // seconds that each kernel waits
  Capture* capture = nullptr;
  int64_t launches = 0, replays = 0, fail_at = -1, allocations = 0, full_from = -1, full_to = -1, copies_up = 0, copies_down = 0;
  double shared_lag = 0; // seconds that a kernel waits in addition when it reads the host's memory
  std::atomic<bool> plugged = false, lost = false, unified = false, one_stream = false; // asked for without the lock
  int violations = 0, next = 0;
  std::string first, failure;
};

Device& device() {
  static auto* one = new Device; // never torn down: its threads outlive main
  return *one;
}

thread_local int current = 0;

[[noreturn]] void fail(int code, const std::string& words) {
  throw c10::AcceleratorError({__func__, __FILE__, __LINE__}, code, words);
}

std::string violated(const std::string& words) {
  auto& d = device();
  if (!d.violations++)
    d.first = words;
  return "second device: " + words;
}

void check_alive() {
  auto& d = device();
  if (!d.failure.empty())
    fail(FAILED, "second device error: " + d.failure);
  if (d.lost || !d.plugged)
    fail(LOST, "second device error: the device is lost");
}

// What this thread captures now; an error where it does so on another stream than `current`.
Capture* captured() {
  auto* capture = device().capture;
  if (!capture || capture->thread != std::this_thread::get_id())
    return nullptr;
  if (capture->stream != current) {
    capture->broken = true;
    fail(FAILED, "second device error: work outside of the stream that is captured");
  }
  return capture;
}

void not_while_capturing() {
  auto* capture = device().capture;
  if (!capture || capture->thread != std::this_thread::get_id())
    return;
  capture->broken = true;
  fail(FAILED, "second device error: operation not permitted when stream is capturing");
}

// ---- streams

void work_off(int stream) {
  auto& d = device();
  auto& line = d.lines[stream];
  at::set_num_threads(1); // a team of its own would take the cores from those who test
  Lock lock(d.mutex);
  while (true) {
    line.woken.wait(lock, [&] { return !line.work.empty(); });
    auto work = std::move(line.work.front());
    line.work.pop_front();
    lock.unlock();
    try {
      if (!d.lost)
        work();
    } catch (const std::exception& error) {
      lock.lock();
      if (d.failure.empty())
        d.failure = error.what();
      lock.unlock();
    }
    work = nullptr;
    lock.lock();
    line.done++;
    d.progress.notify_all();
  }
}

// Before work is put into a stream: what it knows of. The caller holds the lock.
Clock begin(int stream) {
  auto& line = device().lines[stream];
  line.clock.join(device().host);
  line.clock.at[stream]++;
  return line.clock;
}

void enqueue(int stream, std::function<void()> work) {
  auto& line = device().lines[stream];
  if (!line.started)
    std::thread(work_off, stream).detach();
  line.started = true;
  line.work.push_back(std::move(work));
  line.woken.notify_one();
}

// Pinned memory whose copies the host knows of is anybody's again.
void unlock_pinned() {
  auto& d = device();
  for (auto& [begin, block] : d.pinned.blocks) {
    if (!block.read_only && !block.hidden)
      continue;
    bool writes = !d.host.knows(block.writes), reads = !d.host.knows(block.reads);
    if (writes == block.hidden && reads == block.read_only)
      continue;
    block.hidden = writes, block.read_only = reads;
    mprotect(d.pinned.seen + begin, block.bytes, writes ? PROT_NONE : reads ? PROT_READ : PROT_READ | PROT_WRITE);
  }
}

void observe(const Clock& clock) {
  device().host.join(clock);
  unlock_pinned();
}

void await(Lock& lock, int stream, uint64_t time) {
  auto& d = device();
  d.progress.wait(lock, [&] { return d.lines[stream].done >= time; });
}

Mark mark_of(int stream) {
  auto& clock = device().lines[stream].clock;
  return {stream, clock.at[stream], clock};
}

// Let a stream wait for a mark in another.
void hold(int stream, const Mark& mark) {
  not_while_capturing();
  begin(stream);
  device().lines[stream].clock.join(mark.clock);
  enqueue(stream, [mark] {
    Lock lock(device().mutex);
    await(lock, mark.stream, mark.time);
  });
}

void synchronize(int stream) {
  auto& d = device();
  Lock lock(d.mutex);
  check_alive();
  not_while_capturing();
  Clock clock = d.lines[stream].clock;
  await(lock, stream, clock.at[stream]);
  check_alive();
  observe(clock);
}

void synchronize_all() {
  for (int i = 0; i < STREAMS; i++)
    synchronize(i);
}

// ---- memory

void order(Block& block, const Clock& clock, int stream, bool write) {
  bool known = clock.knows(block.before) && clock.knows(block.writes) && (!write || clock.knows(block.reads));
  TORCH_CHECK(known, violated("stream " + std::to_string(stream) + (write ? " writes" : " reads") +
                              " memory whose last use it did not wait for"));
}

void use(Block& block, const Clock& clock, int stream, bool write) {
  (write ? block.writes : block.reads).at[stream] = clock.at[stream];
}

size_t rounded(size_t bytes, size_t to) {
  return (bytes + to - 1) / to * to;
}

void give_back_block(size_t begin) {
  auto& d = device();
  auto& block = d.memory.blocks.at(begin);
  Clock known = d.lines[block.stream].clock, uses = block.before;
  known.join(d.host);
  uses.join(block.writes);
  uses.join(block.reads);
  if (!known.knows(uses) && !d.lost && d.failure.empty())
    violated("memory was given back while a stream may still use it");
  if (block.counted)
    d.used -= block.bytes;
  known.join(uses);
  d.memory.give_back(begin, known);
}

void free_device(void* address) {
  auto& d = device();
  Lock lock(d.mutex);
  auto& [begin, block] = d.memory.find(address);
  if (block.pool) {
    block.idle = true;
    return;
  }
  give_back_block(begin);
}

void free_pinned(void* address) {
  auto& d = device();
  Lock lock(d.mutex);
  d.unpinned.insert(d.pinned.find(address).first);
}

// torch keeps pinned memory until the copies from it are done; so does this.
void reclaim_pinned() {
  auto& d = device();
  for (auto one = d.unpinned.begin(); one != d.unpinned.end();) {
    auto& block = d.pinned.blocks.at(*one);
    bool done = true;
    for (int i = 0; i < STREAMS; i++)
      done &= d.lines[i].done >= std::max(block.writes.at[i], block.reads.at[i]);
    if (!done) {
      ++one;
      continue;
    }
    mprotect(d.pinned.seen + *one, block.bytes, PROT_NONE);
    d.locked -= block.bytes;
    d.pinned.give_back(*one, Clock());
    one = d.unpinned.erase(one);
  }
}

size_t most() {
  auto& d = device();
  size_t free = d.capacity > d.others ? d.capacity - d.others : 0;
  return std::min(free, size_t(d.limit * double(d.capacity)));
}

struct DeviceMemory final : c10::DeviceAllocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto& d = device();
    Lock lock(d.mutex);
    check_alive();
    if (!bytes)
      return {nullptr, c10::Device(KIND, 0)};
    size_t whole = rounded(bytes, LINE);
    Capture* capture = captured();
    if (char* again = capture ? idle_of(*capture, whole) : nullptr)
      return {again, again, free_device, c10::Device(KIND, 0)};
    int64_t number = d.allocations++;
    bool full = number >= d.full_from && number < d.full_to;
    TORCH_CHECK_WITH(OutOfMemoryError, !full && d.used + whole <= most(), "second device out of memory");
    Clock known = d.lines[current].clock;
    known.join(d.host);
    char* found = d.memory.take(whole, current, known);
    if (!found) { // as a card's allocator does when only memory of other streams is left
      lock.unlock(); // whoever waits while it holds the lock twice keeps it
      synchronize_all();
      lock.lock();
      found = d.memory.take(whole, current, d.host);
    }
    TORCH_CHECK_WITH(OutOfMemoryError, found, "second device out of memory: in pieces");
    d.used += whole;
    d.peak = std::max(d.peak, d.used);
    if (capture)
      d.memory.find(found).second.pool = capture->pool;
    poison(found, whole);
    return {found, found, free_device, c10::Device(KIND, 0)};
  }
  // Memory of the graph's pool that nobody holds any more.
  char* idle_of(Capture& capture, size_t bytes) {
    auto& d = device();
    Block* best = nullptr;
    char* found = nullptr;
    for (auto& [begin, block] : d.memory.blocks) {
      bool fits = block.pool == capture.pool && block.idle && block.bytes >= bytes;
      if (fits && (!best || block.bytes < best->bytes))
        best = &block, found = d.memory.seen + begin;
    }
    if (!best)
      return nullptr;
    best->idle = false;
    poison(found, best->bytes);
    return found;
  }
  // Not a number in any floating type, so that reading what was never written shows.
  void poison(char* found, size_t bytes) {
    auto& d = device();
    char* real = d.memory.real + (found - d.memory.seen);
    if (Capture* capture = captured()) {
      capture->work.push_back([real, bytes] { memset(real, 0xFF, bytes); });
      auto& [begin, block] = d.memory.find(found);
      capture->uses.emplace_back(begin, block.serial, true);
      return;
    }
    if (d.host.knows(d.memory.find(found).second.before)) {
      memset(real, 0xFF, bytes);
      return;
    }
    begin(current);
    enqueue(current, [real, bytes] { memset(real, 0xFF, bytes); });
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return free_device;
  }
  void copy_data(void*, const void*, size_t) const override {
    TORCH_CHECK(false, "not needed");
  }
  bool initialized() override {
    return true;
  }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr& pointer, c10::Stream stream) override {
    auto& d = device();
    Lock lock(d.mutex);
    if (pointer.get()) // at once, where a card's allocator waits when the memory is given back
      hold(d.memory.find(pointer.get()).second.stream, mark_of(int(stream.id())));
  }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override {
    auto& d = device();
    Lock lock(d.mutex);
    c10::CachingDeviceAllocator::DeviceStats stats;
    for (auto* one : {&stats.allocated_bytes[0], &stats.reserved_bytes[0]})
      one->current = int64_t(d.used), one->peak = int64_t(d.peak);
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex) override {
    Lock lock(device().mutex);
    device().peak = device().used;
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex) override {
    auto& d = device();
    Lock lock(d.mutex);
    check_alive();
    size_t taken = d.others + d.used;
    return {d.capacity > taken ? d.capacity - taken : 0, d.capacity};
  }
};

struct PinnedMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto& d = device();
    Lock lock(d.mutex);
    check_alive();
    not_while_capturing();
    if (!bytes)
      return {nullptr, c10::Device(DeviceType::CPU)};
    reclaim_pinned();
    size_t whole = rounded(bytes, PAGE);
    if (d.locked + whole > d.pin_limit)
      fail(FAILED, "second device error: out of memory: cannot lock so many pages");
    char* found = d.pinned.take(whole, current, Clock());
    TORCH_CHECK_WITH(OutOfMemoryError, found, "second device: too much pinned memory");
    d.locked += whole;
    mprotect(found, whole, PROT_READ | PROT_WRITE);
    return {found, found, free_pinned, c10::Device(DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return free_pinned;
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    memcpy(to, from, bytes);
  }
};

DeviceMemory device_memory;
PinnedMemory pinned_memory;

// ---- tensors as kernels see them

bool ours(const Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == KIND;
}

const void* address_of(const Tensor& tensor) {
  return tensor.storage().nbytes() ? tensor.storage().data() : nullptr;
}

bool is_pinned(const Tensor& tensor) {
  return address_of(tensor) && device().pinned.has(address_of(tensor));
}

// Memory of the host that a tensor of the device refers to, as devices with unified memory may.
bool is_shared(const Tensor& tensor) {
  return ours(tensor) && address_of(tensor) && !device().memory.has(address_of(tensor));
}

Arena& arena_of(const Tensor& tensor) {
  return ours(tensor) ? device().memory : device().pinned;
}

// The same elements at the address that may be touched. Holds nothing: memory may be given back under a kernel.
Tensor inside(const Tensor& tensor) {
  if (!ours(tensor) && !is_pinned(tensor))
    return tensor;
  auto& arena = arena_of(tensor);
  auto options = tensor.options().device(at::kCPU).pinned_memory(false);
  if (is_shared(tensor)) {
    auto* first = static_cast<char*>(const_cast<void*>(address_of(tensor))) + tensor.storage_offset() * tensor.itemsize();
    return at::from_blob(first, tensor.sizes(), tensor.strides(), options);
  }
  if (!address_of(tensor))
    return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  auto* start = arena.real + (static_cast<const char*>(address_of(tensor)) - arena.seen);
  auto* first = start + size_t(tensor.storage_offset()) * tensor.itemsize();
  return at::from_blob(first, tensor.sizes(), tensor.strides(), options);
}

struct Uses {
  std::vector<std::pair<Tensor, bool>> all;
  bool shared = false;
  void add(const Tensor& tensor, bool write) {
    if (is_shared(tensor)) {
      TORCH_CHECK(device().unified && !write, violated("the host's memory taken for the device's"));
      shared = true;
      return;
    }
    if (tensor.defined() && address_of(tensor) && (ours(tensor) || is_pinned(tensor)))
      all.emplace_back(tensor, write);
  }
  void declare(const Clock& clock, int stream) const {
    for (const auto& [tensor, write] : all)
      order(arena_of(tensor).find(address_of(tensor)).second, clock, stream, write);
    for (const auto& [tensor, write] : all) {
      auto& arena = arena_of(tensor);
      auto& [begin, block] = arena.find(address_of(tensor));
      use(block, clock, stream, write);
      if (ours(tensor))
        continue;
      (write ? block.hidden : block.read_only) = true;
      mprotect(arena.seen + begin, block.bytes, block.hidden ? PROT_NONE : PROT_READ);
    }
  }
};

void count_launch() {
  auto& d = device();
  if (d.launches++ == d.fail_at)
    d.failure = "unspecified launch failure";
  check_alive();
}

void below_autograd(const std::function<void()>& work) {
  c10::impl::ExcludeDispatchKeyGuard below(c10::autograd_dispatch_keyset_with_ADInplaceOrView);
  work();
}

// Keep work for a graph. What the tensors hold of the device stays theirs: a graph knows addresses.
void keep(Capture& capture, const Uses& uses, std::function<void()> work) {
  check_alive();
  for (const auto& [tensor, write] : uses.all) {
    if (!ours(tensor))
      not_while_capturing(); // a card would read the host's memory at every replay
    auto& [begin, block] = device().memory.find(address_of(tensor));
    capture.uses.emplace_back(begin, block.serial, write);
  }
  capture.work.push_back(std::move(work));
}

// Put work into the current stream that uses these tensors.
void launch(const Uses& uses, std::function<void()> work) {
  auto& d = device();
  Lock lock(d.mutex);
  if (Capture* capture = captured())
    return keep(*capture, uses, std::move(work));
  count_launch();
  Clock clock = begin(current);
  try {
    uses.declare(clock, current);
  } catch (...) {
    enqueue(current, [] {}); // the time that it was given
    throw;
  }
  double lag = d.lag + (uses.shared ? d.shared_lag : 0);
  enqueue(current, [work = std::move(work), lag] {
    if (lag > 0)
      std::this_thread::sleep_for(std::chrono::duration<double>(lag));
    below_autograd(work);
  });
}

// ---- operators

template <typename F>
IValue mapped(const IValue& value, const F& each) {
  if (value.isTensor())
    return value.toTensor().defined() ? IValue(each(value.toTensor())) : value;
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& one : value.toTensorVector())
      list.push_back(each(one));
    return list;
  }
  if (value.isList() && value.toList().elementType()->kind() == c10::TypeKind::OptionalType) {
    c10::List<std::optional<Tensor>> list;
    for (const IValue& one : value.toListRef())
      list.push_back(one.isTensor() && one.toTensor().defined() ? std::optional(each(one.toTensor())) : std::nullopt);
    return list;
  }
  return value;
}

Stack mapped(const Stack& stack, c10::Device place, const std::function<Tensor(const Tensor&)>& each) {
  Stack result;
  for (const IValue& value : stack)
    result.push_back(value.isDevice() ? IValue(place) : mapped(value, each));
  return result;
}

Tensor as_meta(const Tensor& tensor) {
  return at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(at::kMeta).pinned_memory(false));
}

bool writes(const c10::Argument& argument) {
  return argument.alias_info() && argument.alias_info()->isWrite();
}

bool takes_indices_of_the_host(const c10::OperatorHandle& op) {
  const auto& name = op.schema().name();
  return name.rfind("aten::index", 0) == 0 || name == "aten::_index_put_impl_";
}

// What an operator reads and writes; refuses tensors of the host, but for single numbers.
Uses uses_of(const c10::OperatorHandle& op, Stack& arguments) {
  Uses uses;
  for (size_t i = 0; i < arguments.size(); i++) {
    bool write = writes(op.schema().arguments()[i]);
    arguments[i] = mapped(arguments[i], [&](const Tensor& tensor) {
      uses.add(tensor, write);
      if (ours(tensor) || tensor.device().type() == DeviceType::Meta)
        return tensor;
      TORCH_CHECK(tensor.dim() == 0 || takes_indices_of_the_host(op),
                  violated("tensors of different devices in " + op.schema().name()));
      return tensor.clone(); // read now, as a card does
    });
  }
  return uses;
}

void call(const c10::OperatorHandle& op, c10::DispatchKey key, Stack& stack) {
  c10::impl::ExcludeDispatchKeyGuard below(c10::autograd_dispatch_keyset_with_ADInplaceOrView);
  op.redispatchBoxed(c10::DispatchKeySet(key), &stack);
}

// What an operator's results look like depends on this alone; false for what has no short name.
bool name_into(std::string& key, const IValue& value) {
  auto put = [&key](int64_t number) { key.append(reinterpret_cast<const char*>(&number), sizeof number); };
  key += char('A' + int(value.isNone()) + 2 * int(value.isTensor()) + 4 * int(value.isBool()));
  if (value.isTensor() && value.toTensor().defined()) {
    const Tensor& tensor = value.toTensor();
    put(int64_t(tensor.scalar_type()) * 64 + tensor.dim());
    for (int64_t i = 0; i < tensor.dim(); i++)
      put(tensor.size(i)), put(tensor.stride(i));
    put(tensor.unsafeGetTensorImpl()->is_wrapped_number());
  } else if (value.isInt() || value.isBool()) {
    put(value.isInt() ? value.toInt() : value.toBool());
  } else if (value.isDouble()) {
    put(0); // of no influence on shapes
  } else if (value.isString()) {
    put(int64_t(value.toStringRef().size())), key += value.toStringRef();
  } else if (value.isList()) {
    put(int64_t(value.toListRef().size()));
    for (const IValue& one : value.toListRef())
      if (!name_into(key, one))
        return false;
  } else {
    return value.isNone() || value.isTensor() || value.isDevice();
  }
  return true;
}

std::optional<Stack> computed_shapes(const c10::OperatorHandle& op, const Stack& arguments) {
  for (const auto& result : op.schema().returns())
    if (result.type()->kind() != c10::TypeKind::TensorType)
      return std::nullopt;
  Stack stack = mapped(arguments, c10::Device(at::kMeta), as_meta);
  try {
    call(op, c10::DispatchKey::Meta, stack);
  } catch (const std::exception&) {
    return std::nullopt;
  }
  return stack;
}

// The results' shapes; empty where only values could tell. Remembered: torch computes many of them in Python.
std::optional<Stack> shapes(const c10::OperatorHandle& op, const Stack& arguments) {
  static std::map<std::string, std::optional<Stack>> known;
  static std::mutex mutex;
  std::string key = op.schema().name() + '.' + op.schema().overload_name();
  for (const IValue& value : arguments)
    if (!name_into(key, value))
      return computed_shapes(op, arguments);
  {
    std::lock_guard<std::mutex> lock(mutex);
    if (auto found = known.find(key); found != known.end())
      return found->second;
  }
  auto result = computed_shapes(op, arguments); // may need the interpreter's lock
  std::lock_guard<std::mutex> lock(mutex);
  return known.emplace(key, result).first->second;
}

Tensor like(const Tensor& meta) {
  return at::empty_strided(meta.sizes(), meta.strides(), meta.options().device(KIND));
}

void copy_results(const Stack& computed, const std::vector<Tensor>& into) {
  for (size_t i = 0; i < into.size(); i++)
    if (into[i].defined() && !computed[i].toTensor().is_alias_of(into[i]))
      into[i].copy_(computed[i].toTensor());
}

// Which argument a result is, -1 for a new tensor.
int argument_of(const c10::FunctionSchema& schema, size_t result) {
  const auto* alias = schema.returns()[result].alias_info();
  for (size_t i = 0; alias && alias->isWrite() && i < schema.arguments().size(); i++)
    if (schema.arguments()[i].alias_info() && *schema.arguments()[i].alias_info() == *alias)
      return int(i);
  TORCH_CHECK(!alias, "the second device does not know the view ", schema.name());
  return -1;
}

void later(const c10::OperatorHandle& op, const Stack& arguments, Uses uses, const Stack& meta, Stack* stack) {
  std::vector<Tensor> into;
  Stack results;
  for (size_t i = 0; i < meta.size(); i++) {
    int argument = argument_of(op.schema(), i);
    Tensor result = argument < 0 ? like(meta[i].toTensor()) : arguments[argument].toTensor();
    if (result.sizes() != meta[i].toTensor().sizes())
      result.resize_(meta[i].toTensor().sizes());
    into.push_back(argument < 0 ? inside(result) : Tensor());
    uses.add(result, true);
    results.emplace_back(result);
  }
  launch(uses, [op, into, inputs = mapped(arguments, c10::Device(at::kCPU), inside)] {
    Stack computed = inputs; // these stay: a graph does this again
    call(op, c10::DispatchKey::CPU, computed);
    copy_results(computed, into);
  });
  *stack = std::move(results);
}

Tensor outside(const Tensor& tensor) {
  Tensor result = at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(KIND));
  inside(result).copy_(tensor);
  return result;
}

void at_once(const c10::OperatorHandle& op, const Stack& arguments, const Uses& uses, Stack* stack) {
  launch(uses, [] {});
  synchronize(current);
  Stack inputs = mapped(arguments, c10::Device(at::kCPU), inside);
  call(op, c10::DispatchKey::CPU, inputs);
  *stack = Stack();
  for (size_t i = 0; i < inputs.size(); i++) {
    int argument = argument_of(op.schema(), i);
    stack->push_back(argument < 0 ? mapped(inputs[i], outside) : arguments[argument]);
    synchronize(current);
  }
}

void fallback(const c10::OperatorHandle& op, Stack* stack) {
  TORCH_CHECK_NOT_IMPLEMENTED(op.hasComputedKernelForDispatchKey(c10::DispatchKey::CPU),
                              "the second device has no ", op.schema().name());
  size_t count = op.schema().arguments().size();
  Stack arguments(stack->end() - count, stack->end()), results;
  Stack below(stack->begin(), stack->end() - count);
  Uses uses = uses_of(op, arguments);
  if (auto meta = shapes(op, arguments))
    later(op, arguments, uses, *meta, &results);
  else
    at_once(op, arguments, uses, &results);
  *stack = std::move(below);
  stack->insert(stack->end(), results.begin(), results.end());
}

Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> type,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  constexpr c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_strided_generic(size, stride, &device_memory, keys, type.value_or(at::kFloat));
}

Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  constexpr c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_generic(size, &device_memory, keys, type.value_or(at::kFloat), format);
}

// Count a copy; return the seconds that the link takes for it.
double begin_transfer(const Tensor& tensor, bool up, bool pinned) {
  auto& d = device();
  Lock lock(d.mutex);
  not_while_capturing();
  (up ? d.copies_up : d.copies_down)++;
  return d.link > 0 ? double(tensor.nbytes()) / (pinned ? d.link : d.link / 2) : 0;
}

// Between host and device. What is not pinned is staged first, or waited for.
void transfer(const Tensor& from, const Tensor& to, bool later) {
  bool up = ours(to), pinned = is_pinned(up ? from : to);
  double seconds = begin_transfer(from, up, pinned);
  Tensor source = up && !pinned ? from.clone() : from;
  Uses uses;
  uses.add(source, false);
  uses.add(to, true);
  launch(uses, [source = inside(source), target = inside(to), seconds] {
    if (seconds > 0)
      std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
    target.copy_(source);
  });
  if (!later || (!up && !pinned))
    synchronize(current);
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool later) {
  if (ours(from) != ours(to)) {
    transfer(from.expand_as(to), to, later);
    return to;
  }
  Uses uses;
  uses.add(from, false);
  uses.add(to, true);
  launch(uses, [source = inside(from), target = inside(to)] { target.copy_(source); });
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

Tensor convolution(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                   at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
                   at::IntArrayRef output_padding, int64_t groups) {
  auto each = [](const std::optional<Tensor>& tensor, Tensor (*change)(const Tensor&)) {
    return tensor && tensor->defined() ? std::optional(change(*tensor)) : std::nullopt;
  };
  Tensor result = like(at::convolution(as_meta(input), as_meta(weight), each(bias, as_meta), stride, padding, dilation,
                                       transposed, output_padding, groups));
  Uses uses;
  uses.add(input, false);
  uses.add(weight, false);
  if (bias)
    uses.add(*bias, false);
  uses.add(result, true);
  launch(uses, [x = inside(input), w = inside(weight), b = each(bias, inside), into = inside(result),
                stride = stride.vec(), padding = padding.vec(), dilation = dilation.vec(), transposed,
                output_padding = output_padding.vec(), groups] {
    into.copy_(at::convolution(x, w, b, stride, padding, dilation, transposed, output_padding, groups));
  });
  return result;
}

at::Scalar number(const Tensor& tensor) {
  Uses uses;
  uses.add(tensor, false);
  launch(uses, [] {});
  synchronize(current);
  return inside(tensor).item();
}

Tensor& set_storage(Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  return at::native::set_storage_cpu_(self, source, offset, size, stride);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("as_strided", at::native::as_strided_tensorimpl);
  library.impl("view", at::native::view);
  library.impl("_reshape_alias", at::native::_reshape_alias);
  library.impl("view_as_real", at::native::view_as_real);
  library.impl("view_as_complex", at::native::view_as_complex);
  library.impl("unfold", at::native::unfold);
  library.impl("resize_", at::native::resize_);
  library.impl("set_.source_Storage_storage_offset", set_storage);
  library.impl("set_.source_Tensor", at::native::set_tensor_);
  library.impl("_copy_from", copy_from);
  library.impl("_copy_from_and_resize", copy_from_and_resize);
  library.impl("convolution_overrideable", convolution);
  library.impl("_local_scalar_dense", number);
}

// ---- what torch asks a device for

struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override {
    return KIND;
  }
  c10::Device exchangeDevice(c10::Device) const override {
    return getDevice();
  }
  c10::Device getDevice() const override {
    return {KIND, 0};
  }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override {
    return device().plugged ? 1 : 0;
  }
  static c10::Stream made(int64_t id) {
    return c10::Stream(c10::Stream::UNSAFE, c10::Device(KIND, 0), id);
  }
  c10::Stream getStream(c10::Device) const override {
    return made(current);
  }
  c10::Stream getDefaultStream(c10::Device) const override {
    return made(0);
  }
  c10::Stream getNewStream(c10::Device, int) const override {
    Lock lock(device().mutex);
    check_alive();
    return made(1 + device().next++ % (STREAMS - 1));
  }
  c10::Stream getStreamFromGlobalPool(c10::Device place, bool) const override {
    return getNewStream(place, 0);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    auto before = made(current);
    current = int(stream.id());
    return before;
  }
  bool queryStream(const c10::Stream& stream) const override {
    auto& d = device();
    Lock lock(d.mutex);
    check_alive();
    not_while_capturing();
    auto& line = d.lines[stream.id()];
    bool done = line.done >= line.clock.at[stream.id()];
    if (done)
      observe(line.clock);
    return done;
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    TORCH_CHECK(!device().one_stream, "Backend doesn't support synchronizing streams.");
    synchronize(int(stream.id()));
  }
  void synchronizeDevice(c10::DeviceIndex) const override {
    synchronize_all();
  }
  void record(void** event, const c10::Stream& stream, c10::DeviceIndex, c10::EventFlag) const override {
    auto& d = device();
    Lock lock(d.mutex);
    check_alive();
    not_while_capturing();
    auto* mark = *event ? static_cast<Mark*>(*event) : new Mark;
    *mark = mark_of(int(stream.id()));
    *event = mark;
  }
  void block(void* event, const c10::Stream& stream) const override {
    auto& d = device();
    Lock lock(d.mutex);
    check_alive();
    if (event)
      hold(int(stream.id()), *static_cast<Mark*>(event));
  }
  bool queryEvent(void* event) const override {
    auto& d = device();
    Lock lock(d.mutex);
    check_alive();
    not_while_capturing();
    auto* mark = static_cast<Mark*>(event);
    bool done = !mark || d.lines[mark->stream].done >= mark->time;
    if (mark && done)
      observe(mark->clock);
    return done;
  }
  void synchronizeEvent(void* event) const override {
    auto& d = device();
    Lock lock(d.mutex);
    check_alive();
    not_while_capturing();
    if (!event)
      return;
    Mark mark = *static_cast<Mark*>(event);
    await(lock, mark.stream, mark.time);
    check_alive();
    observe(mark.clock);
  }
  void destroyEvent(void* event, c10::DeviceIndex) const noexcept override {
    delete static_cast<Mark*>(event);
  }
  void recordDataPtrOnStream(const c10::DataPtr& pointer, const c10::Stream& stream) const override {
    device_memory.recordStream(pointer, stream);
  }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

#ifdef HAS_GRAPHS
// Work of one stream that is done again as one launch.
struct Graph final : at::GraphImplInterface {
  explicit Graph(const at::GraphImplArgs&) {}
  ~Graph() override {
    reset();
  }
  void capture_begin(c10::MempoolId_t shared, at::GraphCaptureMode) override {
    auto& d = device();
    Lock lock(d.mutex);
    check_alive();
    TORCH_CHECK(current && !d.capture, "graphs are captured one at a time, on a stream that is not the default one");
    reset();
    static uint64_t pools = 0;
    TORCH_CHECK(!shared.second || users()[shared.second], "the pool of a graph that is no more");
    uint64_t pool = shared.second ? shared.second : ++pools;
    users()[pool]++;
    capture.reset(new Capture{pool, current, std::this_thread::get_id()});
    d.capture = capture.get();
  }
  void capture_end() override {
    auto& d = device();
    Lock lock(d.mutex);
    TORCH_CHECK(capture && d.capture == capture.get(), "nothing is captured");
    d.capture = nullptr;
    if (!capture->broken) {
      work = std::make_shared<const std::vector<std::function<void()>>>(std::move(capture->work));
      return;
    }
    reset();
    fail(FAILED, "second device error: operation failed due to a previous error during capture");
  }
  void instantiate() override {}
  void replay() override {
    auto& d = device();
    Lock lock(d.mutex);
    TORCH_CHECK(work, "nothing was captured");
    not_while_capturing();
    count_launch();
    d.replays++;
    Clock clock = begin(current);
    try {
      declare(clock);
    } catch (...) {
      enqueue(current, [] {}); // the time that it was given
      throw;
    }
    enqueue(current, [all = work, lag = d.lag] {
      if (lag > 0)
        std::this_thread::sleep_for(std::chrono::duration<double>(lag));
      for (const auto& one : *all)
        below_autograd(one);
    });
  }
  // Inside of it everything is in order; all of it comes after what was there before.
  void declare(const Clock& clock) {
    auto& blocks = device().memory.blocks;
    for (auto& [begin, serial, write] : capture->uses) {
      auto found = blocks.find(begin);
      bool there = found != blocks.end() && found->second.serial == serial;
      TORCH_CHECK(there, violated("a graph is replayed that uses memory which was given back"));
      order(found->second, clock, current, write);
    }
    for (auto& [begin, serial, write] : capture->uses)
      use(blocks.at(begin), clock, current, write);
  }
  // Tensors that are still held keep their memory, as any other.
  void reset() override {
    auto& d = device();
    Lock lock(d.mutex);
    if (!capture)
      return;
    if (d.capture == capture.get())
      d.capture = nullptr;
    if (!--users()[capture->pool])
      give_back_pool();
    capture.reset();
    work.reset();
  }
  void give_back_pool() {
    auto& d = device();
    std::vector<size_t> idle;
    for (auto& [begin, block] : d.memory.blocks) {
      if (block.pool != capture->pool)
        continue;
      block.pool = 0;
      if (block.idle)
        idle.push_back(begin);
    }
    for (size_t begin : idle)
      give_back_block(begin);
  }
  // How many graphs share a pool.
  static std::map<uint64_t, int>& users() {
    static std::map<uint64_t, int> counted;
    return counted;
  }
  c10::MempoolId_t pool() const override {
    return {0, capture ? capture->pool : 0};
  }
  void enable_debug_mode() override {}
  void debug_dump(const std::string&) override {}

  std::unique_ptr<Capture> capture;
  std::shared_ptr<const std::vector<std::function<void()>>> work;
};
#endif

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override {
    return true;
  }
  bool isAvailable() const override {
    return device().plugged;
  }
  bool hasPrimaryContext(c10::DeviceIndex) const override {
    return true;
  }
  c10::DeviceIndex deviceCount() const override {
    return device().plugged ? 1 : 0;
  }
  c10::DeviceIndex getCurrentDevice() const override {
    return 0;
  }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override {
    return 0;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override {
    return 0;
  }
  bool isPinnedPtr(const void* data) const override {
    return device().pinned.has(data);
  }
  c10::Allocator* getPinnedMemoryAllocator() const override {
    return &pinned_memory;
  }
  c10::Device getDeviceFromPtr(void*) const override {
    return {KIND, 0};
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto* self = storage.unsafeGetStorageImpl();
    self->set_data_ptr_noswap(device_memory.allocate(bytes)); // what was there is not needed by any test
    self->set_nbytes(bytes);
  }
};

} // namespace

#ifdef HAS_GRAPHS
namespace at {
REGISTER_GRAPH_IMPL(SECOND, ::Graph)
}
#endif

// ---- what tests ask it for

extern "C" {

void second_device_register() {
  c10::register_privateuse1_backend("second");
  c10::SetAllocator(KIND, &device_memory);
  at::RegisterPrivateUse1HooksInterface(new Hooks);
}

// A device as new: nothing is lost, full or slow. Work that was under way is waited for.
void second_device_plug(int plugged) {
  auto& d = device();
  Lock lock(d.mutex);
  for (int i = 0; i < STREAMS; i++)
    await(lock, i, d.lines[i].clock.at[i]);
  for (auto& line : d.lines)
    observe(line.clock);
  for (auto& [begin, block] : d.memory.blocks)
    block.counted = false;
  d.used = 0;
  d.capture = nullptr;
  d.plugged = plugged, d.lost = false, d.failure.clear(), d.first.clear();
  d.capacity = ARENA, d.others = 0, d.pin_limit = ARENA, d.limit = 1, d.link = d.lag = d.shared_lag = 0, d.unified = d.one_stream = false;
  d.violations = 0, d.full_from = d.full_to = -1, d.launches = d.replays = 0, d.fail_at = -1, d.peak = d.used, d.copies_up = d.copies_down = 0;
}

void second_device_set(const char* name, double value) {
  auto& d = device();
  Lock lock(d.mutex);
  std::string key = name;
  if (key == "capacity")
    d.capacity = size_t(value);
  else if (key == "others")
    d.others = size_t(value);
  else if (key == "limit")
    d.limit = value;
  else if (key == "pin_limit")
    d.pin_limit = size_t(value);
  else if (key == "link")
    d.link = value;
  else if (key == "lag")
    d.lag = value;
  else if (key == "shared_lag")
    d.shared_lag = value;
  else if (key == "unified")
    d.unified = value != 0;
  else if (key == "one_stream")
    d.one_stream = value != 0;
  else if (key == "lost")
    d.lost = value != 0;
  else if (key == "full_after")
    d.full_from = d.allocations + int64_t(value), d.full_to = d.full_from;
  else if (key == "full_times")
    d.full_to = d.full_from + int64_t(value);
  else if (key == "fail_after")
    d.fail_at = d.launches + int64_t(value);
}

double second_device_get(const char* name) {
  auto& d = device();
  Lock lock(d.mutex);
  std::string key = name;
  if (key == "pinned")
    reclaim_pinned(); // what was given back is taken back when somebody asks or needs it
  int64_t waiting = 0;
  for (int i = 0; i < STREAMS; i++)
    waiting += int64_t(d.lines[i].clock.at[i] - d.lines[i].done);
  return key == "violations" ? d.violations
      : key == "waiting"     ? double(waiting)
      : key == "unified"     ? double(d.unified)
      : key == "capacity"    ? double(d.capacity)
      : key == "plugged"     ? double(d.plugged)
      : key == "launches"    ? double(d.launches)
      : key == "replays"     ? double(d.replays)
      : key == "copies_up"   ? double(d.copies_up)
      : key == "copies_down" ? double(d.copies_down)
      : key == "pinned"      ? double(d.locked)
      : key == "used"        ? double(d.used)
                             : double(d.peak);
}

const char* second_device_first() {
  return device().first.c_str();
}
}
