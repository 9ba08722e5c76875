// What CuPy calls of cuBLAS for `@` of float32 and float64: products of matrices, on the CPU.
//
// Of more than two axes the first ones are equal here: CuPy's way to broadcast them is left out.
// An element of a product is a sum in its own dtype, of products in the order of their index, each
// rounded. The other functions that CuPy is linked with are stubs, which build.py adds.
#include "state.h"
#include <cuda_runtime_api.h>
#include <library_types.h>

using namespace emulation;

extern "C" int emulation_may_launch(void *stream);  // runtime.cpp

namespace {

struct Handle {
    void *stream = nullptr;
};

constexpr int SUCCESS = 0, ALLOC_FAILED = 3, INVALID_VALUE = 7, EXECUTION_FAILED = 13,
              NOT_SUPPORTED = 15;

// A matrix whose columns lie one after the other, or its transpose.
template <typename T> struct Matrix {
    const T *first;
    long leading;
    bool transposed;
    T at(long row, long column) const {
        return transposed ? first[row * leading + column] : first[column * leading + row];
    }
};

struct Size {
    int m, n, k;
};

template <typename T>
void product(Size size, T alpha, Matrix<T> a, Matrix<T> b, T beta, T *c, long leading) {
    for (long column = 0; column < size.n; ++column)
        for (long row = 0; row < size.m; ++row) {
            T sum = 0;
            for (long k = 0; k < size.k; ++k) sum += a.at(row, k) * b.at(k, column);
            T &out = c[column * leading + row];
            out = beta == 0 ? alpha * sum : alpha * sum + beta * out;  // as BLAS: NaN stays out
        }
}

// Gives work to the stream of a handle, as a launch of one kernel.
int launch(void *handle, Work work) {
    std::lock_guard<std::recursive_mutex> guard(all().lock);
    void *given = ((Handle *)handle)->stream;
    if (emulation_may_launch(given)) return EXECUTION_FAILED;
    auto stream = stream_of(given);
    bool captured = stream && stream->capturing;
    if (all().launches.size() < 100000)
        all().launches.push_back({"cublas_gemm", 1, 1, current_device(), captured});
    submit(stream, [work] {
        if (!all().idle) work();
    });
    return SUCCESS;
}

template <typename T>
int batched(void *handle, int transa, int transb, Size size, const void *alpha, const void *a,
            int lda, long stride_a, const void *b, int ldb, long stride_b, const void *beta, void *c,
            int ldc, long stride_c, int count) {
    T factor = *(const T *)alpha, old = *(const T *)beta;
    return launch(handle, [=] {
        for (long k = 0; k < count; ++k)
            product<T>(size, factor, {(const T *)a + k * stride_a, lda, transa != 0},
                       {(const T *)b + k * stride_b, ldb, transb != 0}, old, (T *)c + k * stride_c,
                       ldc);
    });
}

}  // namespace

extern "C" {

// A handle has memory on the device, so it cannot be created while a stream is captured.
int cublasCreate_v2(void **handle) {
    void *workspace;
    if (cudaMalloc(&workspace, 1) != cudaSuccess) return ALLOC_FAILED;
    cudaFree(workspace);
    *handle = new Handle;
    return SUCCESS;
}
int cublasDestroy_v2(void *handle) { delete (Handle *)handle; return SUCCESS; }
int cublasGetVersion_v2(void *, int *version) { *version = 120900; return SUCCESS; }
int cublasSetStream_v2(void *handle, void *stream) {
    ((Handle *)handle)->stream = stream;
    return SUCCESS;
}
int cublasGetStream_v2(void *handle, void **stream) {
    *stream = ((Handle *)handle)->stream;
    return SUCCESS;
}
int cublasSetPointerMode_v2(void *, int mode) { return mode == 0 ? SUCCESS : NOT_SUPPORTED; }
int cublasGetPointerMode_v2(void *, int *mode) { *mode = 0; return SUCCESS; }
int cublasSetMathMode(void *, int) { return SUCCESS; }
int cublasGetMathMode(void *, int *mode) { *mode = 0; return SUCCESS; }

int cublasGemmStridedBatchedEx(void *handle, int transa, int transb, int m, int n, int k,
                               const void *alpha, const void *a, cudaDataType type_a, int lda,
                               long long stride_a, const void *b, cudaDataType type_b, int ldb,
                               long long stride_b, const void *beta, void *c, cudaDataType type_c,
                               int ldc, long long stride_c, int count, int, int) {
    if (type_a != type_b || type_a != type_c) return NOT_SUPPORTED;
    if (lda < (transa ? k : m) || ldb < (transb ? n : k) || ldc < m) return INVALID_VALUE;
    auto run = type_a == CUDA_R_32F ? batched<float> : type_a == CUDA_R_64F ? batched<double> : nullptr;
    if (!run) return NOT_SUPPORTED;
    return run(handle, transa, transb, {m, n, k}, alpha, a, lda, stride_a, b, ldb, stride_b, beta, c,
               ldc, stride_c, count);
}
int cublasGemmEx(void *handle, int transa, int transb, int m, int n, int k, const void *alpha,
                 const void *a, cudaDataType type_a, int lda, const void *b, cudaDataType type_b,
                 int ldb, const void *beta, void *c, cudaDataType type_c, int ldc, int compute,
                 int algorithm) {
    return cublasGemmStridedBatchedEx(handle, transa, transb, m, n, k, alpha, a, type_a, lda, 0, b,
                                      type_b, ldb, 0, beta, c, type_c, ldc, 0, 1, compute, algorithm);
}

}  // extern "C"
