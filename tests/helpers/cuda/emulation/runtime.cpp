// The functions of CUDA's runtime that CuPy's one module for it is linked with (see build.py).
#include "state.h"
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda_runtime_api.h>

namespace emulation {

Everything &all() {
    static Everything everything;
    return everything;
}

static thread_local int device = 0;
int current_device() { return device; }

Stream *stream_of(const void *handle) {
    return (uintptr_t)handle < 3 ? nullptr : (Stream *)handle;
}

void submit(Stream *stream, Work work) {
    if (stream && stream->capturing)
        stream->captured.push_back(std::move(work));
    else
        work();
}

}  // namespace emulation

using namespace emulation;

namespace {

std::recursive_mutex &lock = all().lock;
using Guard = std::lock_guard<std::recursive_mutex>;
thread_local cudaError_t last_error = cudaSuccess;

cudaError_t failed(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

void count(const char *name) { all().calls[name]++; }
#define COUNTED            \
    Guard guard(lock);     \
    count(__func__)

bool any_capture(bool of_blocking_streams) {
    for (Stream *stream : all().streams)
        if (stream->capturing && (stream->blocking || !of_blocking_streams)) return true;
    return false;
}

// A capture that is not relaxed forbids what could wait for the captured work.
bool unsafe_now() {
    for (Stream *stream : all().streams)
        if (stream->capturing && stream->mode != cudaStreamCaptureModeRelaxed) {
            stream->spoilt = true;
            return true;
        }
    return false;
}

// The legacy stream waits for all blocking streams, which one that is captured cannot answer.
cudaError_t legacy_is_free(cudaStream_t handle) {
    if (stream_of(handle) || !any_capture(true)) return cudaSuccess;
    for (Stream *stream : all().streams)
        if (stream->capturing && stream->blocking) stream->spoilt = true;
    return cudaErrorStreamCaptureImplicit;
}

// Lets transfers before one of this number arrive.
void arrive(long before, const Stream *stream) {
    auto &transfers = all().under_way;
    auto arrives = [=](const Transfer &it) { return it.number < before && it.stream == stream; };
    for (auto &it : transfers)
        if (arrives(it)) memcpy(it.target, it.bytes.data(), it.bytes.size());
    transfers.erase(std::remove_if(transfers.begin(), transfers.end(), arrives), transfers.end());
}

void all_arrive() {
    for (auto &it : all().under_way) memcpy(it.target, it.bytes.data(), it.bytes.size());
    all().under_way.clear();
}

cudaError_t waits(const char *name) {
    all().waits.push_back(name);
    return all().refuse_waits ? failed(cudaErrorNotPermitted) : cudaSuccess;
}

// Device memory: filled with NaN when it is allocated, and when it is freed, and then kept.

constexpr size_t ALIGNMENT = 512, MEMORY = (size_t)1 << 35, KEPT = (size_t)1 << 28;

bool untouched(uintptr_t address, size_t size) {
    auto bytes = (const unsigned char *)address;
    return std::all_of(bytes, bytes + size, [](unsigned char byte) { return byte == 0xff; });
}

void drop_oldest() {
    auto &state = all();
    uintptr_t address = state.freed_in_order.front();
    state.freed_in_order.erase(state.freed_in_order.begin());
    size_t size = state.freed[address].size;
    state.written_after_free += !untouched(address, size);
    state.freed.erase(address);
    state.freed_bytes -= size;
    free((void *)address);
}

size_t used_on(int device) {
    size_t used = 0;
    for (auto &[_, it] : all().memory)
        if (!it.on_host && it.device == device) used += it.size;
    return used;
}

cudaError_t allocate(void **address, size_t size, bool on_host) {
    auto &state = all();
    if (unsafe_now()) return failed(cudaErrorStreamCaptureUnsupported);
    if (state.fail_allocations > 0) {
        state.fail_allocations--;
        return failed(cudaErrorMemoryAllocation);
    }
    size_t whole = (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (!on_host && used_on(device) + whole > MEMORY) return failed(cudaErrorMemoryAllocation);
    if (!(*address = aligned_alloc(ALIGNMENT, whole))) return failed(cudaErrorMemoryAllocation);
    memset(*address, 0xff, whole);
    state.memory[(uintptr_t)*address] = {size, device, on_host};
    return cudaSuccess;
}

cudaError_t release(void *given) {
    auto &state = all();
    if (unsafe_now()) return failed(cudaErrorStreamCaptureUnsupported);
    auto address = (uintptr_t)given;
    auto found = state.memory.find(address);
    if (!given) return cudaSuccess;
    all_arrive();
    if (found == state.memory.end()) return failed(cudaErrorInvalidValue);
    memset(given, 0xff, found->second.size);
    state.freed[address] = found->second;
    state.freed_in_order.push_back(address);
    state.freed_bytes += found->second.size;
    state.memory.erase(found);
    while (state.freed_bytes > KEPT) drop_oldest();
    return cudaSuccess;
}

const Allocation *allocation_of(const void *given) {
    auto &memory = all().memory;
    auto after = memory.upper_bound((uintptr_t)given);
    if (after == memory.begin()) return nullptr;
    --after;
    return (uintptr_t)given < after->first + after->second.size ? &after->second : nullptr;
}

cudaError_t copy(void *target, const void *source, size_t size, cudaStream_t handle) {
    if (auto error = legacy_is_free(handle)) return failed(error);
    submit(stream_of(handle), [=] { memmove(target, source, size); });
    return cudaSuccess;
}

cudaError_t new_stream(cudaStream_t *made, unsigned flags) {
    auto stream = new Stream;
    stream->blocking = !(flags & cudaStreamNonBlocking);
    stream->device = device;
    all().streams.push_back(stream);
    *made = (cudaStream_t)stream;
    return cudaSuccess;
}

double now() {
    using namespace std::chrono;
    return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

}  // namespace

extern "C" {

// What tests ask and set; see emulation.py ----------------------------------------------------

void emulation_clear() {
    Guard guard(lock);
    all().calls.clear();
    all().waits.clear();
    all().launches.clear();
}
void emulation_set_late(int queries) { all().late = queries; }
void emulation_refuse_waits(int depth) { all().refuse_waits += depth; }
void emulation_set_idle(int idle) { all().idle = idle; }
void emulation_set_devices(int devices) { all().devices = devices; }
void emulation_fail_allocations(long coming) { all().fail_allocations = coming; }
long emulation_calls(const char *name) {
    Guard guard(lock);
    return all().calls[name];
}
long emulation_waits() { return (long)all().waits.size(); }
const char *emulation_wait(long k) { return all().waits[k].c_str(); }
long emulation_launches() { return (long)all().launches.size(); }
const char *emulation_launch(long k, unsigned *grid, unsigned *block, int *device, int *captured) {
    auto &launch = all().launches[k];
    *grid = launch.grid, *block = launch.block;
    *device = launch.device, *captured = launch.captured;
    return launch.name.c_str();
}
long emulation_memory(uintptr_t *addresses, size_t *sizes, long room) {
    Guard guard(lock);
    long k = 0;
    for (auto &[address, it] : all().memory) {
        if (k < room) addresses[k] = address, sizes[k] = it.size;
        ++k;
    }
    return k;
}
long emulation_written_after_free() {
    Guard guard(lock);
    auto &state = all();
    while (!state.freed_in_order.empty()) drop_oldest();
    long found = state.written_after_free;
    state.written_after_free = 0;
    return found;
}
int emulation_capturing() {
    Guard guard(lock);
    return any_capture(false);
}
// Ends what a test has left behind.
void emulation_end_captures() {
    Guard guard(lock);
    for (Stream *stream : all().streams) {
        stream->capturing = stream->spoilt = false;
        stream->captured.clear();
    }
}
int emulation_may_launch(void *handle) { return legacy_is_free((cudaStream_t)handle); }

// Errors ------------------------------------------------------------------------------------------

const char *cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
        case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
        case cudaErrorNoDevice: return "cudaErrorNoDevice";
        case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
        case cudaErrorSystemDriverMismatch: return "cudaErrorSystemDriverMismatch";
        case cudaErrorUnknown: return "cudaErrorUnknown";
        case cudaErrorNotReady: return "cudaErrorNotReady";
        case cudaErrorNotPermitted: return "cudaErrorNotPermitted";
        case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
        case cudaErrorStreamCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
        case cudaErrorStreamCaptureImplicit: return "cudaErrorStreamCaptureImplicit";
        case cudaErrorCapturedEvent: return "cudaErrorCapturedEvent";
        case cudaErrorIllegalState: return "cudaErrorIllegalState";
        default: return "cudaErrorNotSupported";
    }
}
const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorNoDevice: return "no CUDA-capable device is detected";
        case cudaErrorInsufficientDriver:
            return "CUDA driver version is insufficient for CUDA runtime version";
        case cudaErrorSystemDriverMismatch:
            return "system has unsupported display driver / cuda driver combination";
        case cudaErrorUnknown: return "unknown error";
        case cudaErrorNotPermitted: return "the host would wait for the device here";
        case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
        case cudaErrorStreamCaptureInvalidated:
            return "operation failed due to a previous error during capture";
        case cudaErrorStreamCaptureImplicit:
            return "operation would make the legacy stream depend on a capturing blocking stream";
        case cudaErrorCapturedEvent: return "operation not permitted on an event last recorded in a "
                                            "capturing stream";
        default: return cudaGetErrorName(error);
    }
}
cudaError_t cudaGetLastError() {
    auto error = last_error;
    last_error = cudaSuccess;
    return error;
}

// Devices -----------------------------------------------------------------------------------------

cudaError_t cudaDriverGetVersion(int *version) { *version = 12090; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = 12090; return cudaSuccess; }
cudaError_t cudaGetDevice(int *number) { *number = device; return cudaSuccess; }
cudaError_t cudaSetDevice(int number) {
    COUNTED;
    if (number < 0 || number >= all().devices) return failed(cudaErrorInvalidDevice);
    device = number;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *count) {
    *count = all().devices;
    return all().devices ? cudaSuccess : failed(cudaErrorNoDevice);
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int) {
    *value = attribute == cudaDevAttrComputeCapabilityMajor   ? 9
             : attribute == cudaDevAttrComputeCapabilityMinor ? 0
                                                              : 1;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetByPCIBusId(int *number, const char *) { *number = 0; return cudaSuccess; }
cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int number) {
    snprintf(text, size, "0000:0%d:00.0", number);
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties_v2(cudaDeviceProp *about, int) {
    memset(about, 0, sizeof *about);
    strcpy(about->name, "CUDA on the CPU");
    about->major = 9;
    about->warpSize = 32;
    about->maxThreadsPerBlock = 1024;
    about->multiProcessorCount = 1;
    about->totalGlobalMem = MEMORY;
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
    COUNTED;
    if (any_capture(false)) return failed(cudaErrorStreamCaptureUnsupported);
    if (auto error = waits("Device.synchronize")) return error;
    all_arrive();
    return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int *can, int, int) { *can = 0; return cudaSuccess; }
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaErrorNotSupported; }
cudaError_t cudaDeviceDisablePeerAccess(int) { return cudaErrorNotSupported; }
cudaError_t cudaDeviceGetLimit(size_t *value, cudaLimit) { *value = 0; return cudaSuccess; }
cudaError_t cudaDeviceSetLimit(cudaLimit, size_t) { return cudaSuccess; }
cudaError_t cudaProfilerStart() { return cudaSuccess; }
cudaError_t cudaProfilerStop() { return cudaSuccess; }

// Memory ------------------------------------------------------------------------------------------

cudaError_t cudaMalloc(void **address, size_t size) { COUNTED; return allocate(address, size, false); }
cudaError_t cudaMallocManaged(void **address, size_t size, unsigned) {
    COUNTED;
    return allocate(address, size, false);
}
cudaError_t cudaHostAlloc(void **address, size_t size, unsigned) {
    COUNTED;
    return allocate(address, size, true);
}
cudaError_t cudaFree(void *address) { COUNTED; return release(address); }
cudaError_t cudaFreeHost(void *address) { COUNTED; return release(address); }
cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
    COUNTED;
    *total = MEMORY;
    *free = MEMORY - used_on(device);
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *about, const void *address) {
    COUNTED;
    memset(about, 0, sizeof *about);
    auto found = allocation_of(address);
    about->type = !found           ? cudaMemoryTypeUnregistered
                  : found->on_host ? cudaMemoryTypeHost
                                   : cudaMemoryTypeDevice;
    about->device = found ? found->device : device;
    about->devicePointer = about->hostPointer = (void *)address;
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void *target, const void *source, size_t size, cudaMemcpyKind) {
    COUNTED;
    if (auto error = legacy_is_free(nullptr)) return failed(error);
    if (unsafe_now()) return failed(cudaErrorStreamCaptureUnsupported);
    if (auto error = waits("memcpy")) return error;
    all_arrive();
    memmove(target, source, size);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *target, const void *source, size_t size, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    COUNTED;
    // To memory of the host that is not pinned the driver copies before it returns.
    if (kind == cudaMemcpyDeviceToHost && !allocation_of(target))
        if (auto error = waits("memcpyAsync to pageable memory")) return error;
    auto stream_here = stream_of(stream);
    if (kind == cudaMemcpyDeviceToHost && allocation_of(target) &&
        !(stream_here && stream_here->capturing)) {
        if (auto error = legacy_is_free(stream)) return failed(error);
        auto from = (const char *)source;
        all().under_way.push_back({target, {from, from + size}, stream_here, all().transfers++});
        return cudaSuccess;
    }
    return copy(target, source, size, stream);
}
cudaError_t cudaMemcpyPeer(void *target, int, const void *source, int, size_t size) {
    COUNTED;
    memmove(target, source, size);
    return cudaSuccess;
}
cudaError_t cudaMemcpyPeerAsync(void *target, int, const void *source, int, size_t size,
                                cudaStream_t stream) {
    COUNTED;
    return copy(target, source, size, stream);
}
cudaError_t cudaMemset(void *target, int value, size_t size) {
    COUNTED;
    if (auto error = legacy_is_free(nullptr)) return failed(error);
    memset(target, value, size);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *target, int value, size_t size, cudaStream_t stream) {
    COUNTED;
    if (auto error = legacy_is_free(stream)) return failed(error);
    submit(stream_of(stream), [=] { memset(target, value, size); });
    return cudaSuccess;
}

// Streams and graphs ------------------------------------------------------------------------------

cudaError_t cudaStreamCreate(cudaStream_t *made) { COUNTED; return new_stream(made, 0); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *made, unsigned flags) {
    COUNTED;
    return new_stream(made, flags);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *made, unsigned flags, int) {
    COUNTED;
    return new_stream(made, flags);
}
cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned *flags) {
    *flags = stream_of(stream) && !stream_of(stream)->blocking;
    return cudaSuccess;
}
cudaError_t cudaStreamGetPriority(cudaStream_t, int *priority) { *priority = 0; return cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t) { COUNTED; return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    COUNTED;
    if (auto error = legacy_is_free(handle)) return failed(error);
    auto stream = stream_of(handle);
    if (stream && stream->capturing) {
        stream->spoilt = true;
        return failed(cudaErrorStreamCaptureUnsupported);
    }
    if (unsafe_now()) return failed(cudaErrorStreamCaptureUnsupported);
    if (auto error = waits("Stream.synchronize")) return error;
    arrive(all().transfers, stream);
    return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t handle) {
    COUNTED;
    auto stream = stream_of(handle);
    if (!stream || !stream->capturing) return cudaSuccess;
    stream->spoilt = true;
    return failed(cudaErrorStreamCaptureUnsupported);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { COUNTED; return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
    COUNTED;
    auto stream = stream_of(handle);
    if (!stream) return failed(cudaErrorStreamCaptureUnsupported);
    if (stream->capturing) return failed(cudaErrorIllegalState);
    stream->capturing = true;
    stream->spoilt = false;
    stream->mode = mode;
    stream->captured.clear();
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *made) {
    COUNTED;
    auto stream = stream_of(handle);
    if (!stream || !stream->capturing) return failed(cudaErrorIllegalState);
    stream->capturing = false;
    auto nodes = std::move(stream->captured);
    stream->captured.clear();
    *made = nullptr;
    if (stream->spoilt) return failed(cudaErrorStreamCaptureInvalidated);
    *made = (cudaGraph_t) new Graph{std::move(nodes)};
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus *status) {
    COUNTED;
    if (auto error = legacy_is_free(handle)) return failed(error);
    auto stream = stream_of(handle);
    *status = !stream || !stream->capturing ? cudaStreamCaptureStatusNone
              : stream->spoilt              ? cudaStreamCaptureStatusInvalidated
                                            : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t) { COUNTED; return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { COUNTED; return cudaSuccess; }
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long) {
    COUNTED;
    *made = (cudaGraphExec_t)graph;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *made, cudaGraph_t graph,
                                          unsigned long long flags) {
    COUNTED;
    return cudaGraphInstantiate(made, graph, flags);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t given, cudaStream_t handle) {
    COUNTED;
    if (auto error = legacy_is_free(handle)) return failed(error);
    auto graph = (Graph *)given;
    submit(stream_of(handle), [graph] {
        for (auto &node : graph->nodes) node();
    });
    return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { COUNTED; return cudaSuccess; }
cudaError_t cudaGraphDebugDotPrint(cudaGraph_t, const char *, unsigned) { return cudaSuccess; }

// Events ------------------------------------------------------------------------------------------

cudaError_t cudaEventCreate(cudaEvent_t *made) {
    COUNTED;
    *made = (cudaEvent_t) new Event;
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *made, unsigned) {
    COUNTED;
    return cudaEventCreate(made);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    COUNTED;
    delete (Event *)event;
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    COUNTED;
    *milliseconds = (float)(((Event *)end)->recorded_at - ((Event *)start)->recorded_at);
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t given, cudaStream_t handle) {
    COUNTED;
    if (auto error = legacy_is_free(handle)) return failed(error);
    auto event = (Event *)given;
    auto stream = stream_of(handle);
    event->stream = stream;
    event->transfers = all().transfers;
    event->capturing = stream && stream->capturing ? stream : nullptr;
    event->queries_until_done = all().late;
    event->recorded_at = now();
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t given) {
    COUNTED;
    auto event = (Event *)given;
    if (event->capturing) return failed(cudaErrorCapturedEvent);
    if (event->queries_until_done-- > 0) return cudaErrorNotReady;
    event->queries_until_done = 0;
    arrive(event->transfers, event->stream);
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t given) {
    COUNTED;
    auto event = (Event *)given;
    if (event->capturing) return failed(cudaErrorCapturedEvent);
    if (auto error = waits("Event.synchronize")) return error;
    event->queries_until_done = 0;
    arrive(event->transfers, event->stream);
    return cudaSuccess;
}

// What is not there -------------------------------------------------------------------------------

#define MISSING(name, ...) \
    cudaError_t name(__VA_ARGS__) { return failed(cudaErrorNotSupported); }
MISSING(cudaMallocAsync, void **, size_t, cudaStream_t)
MISSING(cudaMallocFromPoolAsync, void **, size_t, cudaMemPool_t, cudaStream_t)
MISSING(cudaFreeAsync, void *, cudaStream_t)
MISSING(cudaIpcCloseMemHandle, void *)
MISSING(cudaIpcGetEventHandle, cudaIpcEventHandle_t *, cudaEvent_t)
MISSING(cudaIpcGetMemHandle, cudaIpcMemHandle_t *, void *)
MISSING(cudaIpcOpenEventHandle, cudaEvent_t *, cudaIpcEventHandle_t)
MISSING(cudaIpcOpenMemHandle, void **, cudaIpcMemHandle_t, unsigned)
MISSING(cudaMalloc3DArray, cudaArray_t *, const cudaChannelFormatDesc *, cudaExtent, unsigned)
MISSING(cudaMallocArray, cudaArray_t *, const cudaChannelFormatDesc *, size_t, size_t, unsigned)
MISSING(cudaHostRegister, void *, size_t, unsigned)
MISSING(cudaHostUnregister, void *)
MISSING(cudaFreeArray, cudaArray_t)
MISSING(cudaMemcpy2DFromArray, void *, size_t, cudaArray_const_t, size_t, size_t, size_t, size_t,
        cudaMemcpyKind)
MISSING(cudaMemcpy2DFromArrayAsync, void *, size_t, cudaArray_const_t, size_t, size_t, size_t,
        size_t, cudaMemcpyKind, cudaStream_t)
MISSING(cudaMemcpy2DToArray, cudaArray_t, size_t, size_t, const void *, size_t, size_t, size_t,
        cudaMemcpyKind)
MISSING(cudaMemcpy2DToArrayAsync, cudaArray_t, size_t, size_t, const void *, size_t, size_t, size_t,
        cudaMemcpyKind, cudaStream_t)
MISSING(cudaMemcpy2D, void *, size_t, const void *, size_t, size_t, size_t, cudaMemcpyKind)
MISSING(cudaMemcpy2DAsync, void *, size_t, const void *, size_t, size_t, size_t, cudaMemcpyKind,
        cudaStream_t)
MISSING(cudaMemcpy3D, const cudaMemcpy3DParms *)
MISSING(cudaMemcpy3DAsync, const cudaMemcpy3DParms *, cudaStream_t)
MISSING(cudaMemPrefetchAsync, const void *, size_t, int, cudaStream_t)
MISSING(cudaMemAdvise, const void *, size_t, cudaMemoryAdvise, int)
MISSING(cudaDeviceGetDefaultMemPool, cudaMemPool_t *, int)
MISSING(cudaDeviceGetMemPool, cudaMemPool_t *, int)
MISSING(cudaDeviceSetMemPool, int, cudaMemPool_t)
MISSING(cudaMemPoolCreate, cudaMemPool_t *, const cudaMemPoolProps *)
MISSING(cudaMemPoolDestroy, cudaMemPool_t)
MISSING(cudaMemPoolTrimTo, cudaMemPool_t, size_t)
MISSING(cudaMemPoolGetAttribute, cudaMemPool_t, cudaMemPoolAttr, void *)
MISSING(cudaMemPoolSetAttribute, cudaMemPool_t, cudaMemPoolAttr, void *)
MISSING(cudaStreamAddCallback, cudaStream_t, cudaStreamCallback_t, void *, unsigned)
MISSING(cudaLaunchHostFunc, cudaStream_t, cudaHostFn_t, void *)
MISSING(cudaCreateTextureObject, cudaTextureObject_t *, const cudaResourceDesc *,
        const cudaTextureDesc *, const cudaResourceViewDesc *)
MISSING(cudaDestroyTextureObject, cudaTextureObject_t)
MISSING(cudaGetChannelDesc, cudaChannelFormatDesc *, cudaArray_const_t)
MISSING(cudaGetTextureObjectResourceDesc, cudaResourceDesc *, cudaTextureObject_t)
MISSING(cudaGetTextureObjectTextureDesc, cudaTextureDesc *, cudaTextureObject_t)
MISSING(cudaCreateSurfaceObject, cudaSurfaceObject_t *, const cudaResourceDesc *)
MISSING(cudaDestroySurfaceObject, cudaSurfaceObject_t)

}  // extern "C"
