// The functions of CUDA's driver that CuPy loads by name: modules, and launches of their kernels.
//
// A module is the path of a shared library that was built for the CPU (see kernel.h), after "SO:".
#include "state.h"
#include <cstring>
#include <dlfcn.h>

using namespace emulation;

namespace {

// As in kernel.h.
using Run = int (*)(void **arguments, unsigned grid, unsigned block);
using Hook = int (*)(const char *name, unsigned grid, unsigned block, int count, const int *sizes,
                     void **arguments);

struct Module {
    std::string path;
    void *library = nullptr;
};

struct Function {
    std::string name, path;
    Run run = nullptr;
    std::vector<int> sizes;  // bytes of each argument
};

Hook hook = nullptr;

constexpr int SUCCESS = 0, INVALID_IMAGE = 200, NOT_FOUND = 500, NOT_SUPPORTED = 801, FAILED = 719;

// A copy of the arguments, since a graph reads them later.
struct Call {
    Function *function;
    unsigned grid, block;
    std::vector<std::vector<char>> arguments;

    void operator()() {
        if (all().idle) return;
        std::vector<void *> pointers;
        for (auto &argument : arguments) pointers.push_back(argument.data());
        const auto &sizes = function->sizes;
        int hooked = !hook ? 0 : hook(function->path.c_str(), grid, block, (int)sizes.size(),
                                      sizes.data(), pointers.data());
        if (hooked == 2) all().stuck = function->name + ": what a test runs it with has failed";
        if (hooked) return;
        int wrong = function->run(pointers.data(), grid, block);
        if (wrong)
            all().stuck = function->name + (wrong == 1 ? ": an address that is not aligned"
                                                       : ": threads wait at a barrier for ever");
    }
};

}  // namespace

extern "C" {

void emulation_set_hook(Hook given) { hook = given; }

int cuGetErrorName(int code, const char **name) {
    *name = code == FAILED ? "CUDA_ERROR_LAUNCH_FAILED" : "CUDA_ERROR";
    return SUCCESS;
}
int cuGetErrorString(int code, const char **text) {
    static thread_local std::string said;
    said = code == FAILED && !all().stuck.empty() ? all().stuck : "error " + std::to_string(code);
    all().stuck.clear();
    *text = said.c_str();
    return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxGetCurrent(void **context) { *context = (void *)1; return SUCCESS; }
int cuCtxSetCurrent(void *) { return SUCCESS; }
int cuCtxCreate_v2(void **context, unsigned, int) { *context = (void *)1; return SUCCESS; }
int cuCtxDestroy_v2(void *) { return SUCCESS; }
int cuCtxGetDevice(int *device) { *device = current_device(); return SUCCESS; }
int cuStreamGetCtx(void *, void **context) { *context = (void *)1; return SUCCESS; }

int cuModuleLoad(void **, const char *) { return NOT_SUPPORTED; }
int cuModuleLoadData(void **module, const void *image) {
    const char *text = (const char *)image;
    if (strncmp(text, "SO:", 3) != 0) return INVALID_IMAGE;
    auto made = new Module{text + 3};
    made->library = dlopen(made->path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!made->library) return INVALID_IMAGE;
    *module = made;
    return SUCCESS;
}
int cuModuleUnload(void *) { return SUCCESS; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
    auto from = (Module *)module;
    auto made = new Function{name, from->path, (Run)dlsym(from->library, "run")};
    auto sizes = (const int *)dlsym(from->library, "argument_sizes");
    auto count = (const int *)dlsym(from->library, "argument_count");
    if (!made->run || !sizes || !count) return NOT_FOUND;
    made->sizes.assign(sizes, sizes + *count);
    *function = made;
    return SUCCESS;
}

int emulation_may_launch(void *stream);  // runtime.cpp

int cuLaunchKernel(void *given, unsigned grid, unsigned, unsigned, unsigned block, unsigned, unsigned,
                   unsigned, void *handle, void **parameters, void **) {
    std::lock_guard<std::recursive_mutex> guard(all().lock);
    if (int error = emulation_may_launch(handle)) return error;
    auto function = (Function *)given;
    auto stream = stream_of(handle);
    bool captured = stream && stream->capturing;
    if (all().launches.size() < 100000)
        all().launches.push_back({function->name, grid, block, current_device(), captured});
    Call call{function, grid, block, {}};
    for (size_t k = 0; k < function->sizes.size(); ++k)
        call.arguments.emplace_back((char *)parameters[k],
                                    (char *)parameters[k] + function->sizes[k]);
    submit(stream, call);
    return all().stuck.empty() ? SUCCESS : FAILED;
}

int cuFuncGetAttribute(int *value, int, void *) { *value = 0; return SUCCESS; }
int cuFuncSetAttribute(void *, int, int) { return SUCCESS; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, ...) { *blocks = 1; return SUCCESS; }
int cuOccupancyMaxPotentialBlockSize(int *grid, int *block, ...) {
    *grid = 1;
    *block = 128;
    return SUCCESS;
}

// What is not there ---------------------------------------------------------------------------

#define MISSING(name) \
    int name(...) { return NOT_SUPPORTED; }
MISSING(cuModuleGetGlobal_v2)
MISSING(cuLaunchCooperativeKernel)
MISSING(cuLinkCreate_v2)
MISSING(cuLinkAddData_v2)
MISSING(cuLinkAddFile_v2)
MISSING(cuLinkComplete)
MISSING(cuLinkDestroy)
MISSING(cuTexRefSetAddress)
MISSING(cuTexRefSetAddress2D_v3)
MISSING(cuTexRefSetAddressMode)
MISSING(cuTexRefSetArray)
MISSING(cuTexRefSetFilterMode)
MISSING(cuTexRefSetFlags)
MISSING(cuTexRefSetFormat)
MISSING(cuTexRefSetMaxAnisotropy)

}  // extern "C"
