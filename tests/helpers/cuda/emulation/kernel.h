// What a kernel's source, as CuPy generates it, is compiled with for the CPU: CUDA's words and the
// types of CuPy's headers. A load or store at an address that is no multiple of its width ends the
// launch (g++'s alignment sanitizer), and threads take turns where there are barriers: those of a
// block or, if none of its barriers is for more, those of a warp.
#pragma once
#include <algorithm>
#include <cmath>
#include <complex>
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <ucontext.h>
#include <vector>
#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static thread_local

using std::fabs; using std::isfinite; using std::isinf; using std::isnan; using std::signbit;
using std::sqrt; using std::real; using std::imag; using std::conj;
namespace thrust { template <class T> using complex = std::complex<T>; }
template <class T> T max(T a, T b) { return a > b ? a : b; }
template <class T> T min(T a, T b) { return a < b ? a : b; }

// CuPy's, for integers.
template <class T> T _floor_divide(T number, T by) {
    if (by == 0) return 0;
    T whole = number / by;
    return number % by != 0 && (number < 0) != (by < 0) ? whole - 1 : whole;
}

struct Dim { unsigned x, y, z; };
static thread_local Dim threadIdx, blockIdx, blockDim, gridDim;
static thread_local ucontext_t between, *running;
static thread_local jmp_buf leave;
static void __syncthreads() { swapcontext(running, &between); }
static void __syncwarp(unsigned = 0) { __syncthreads(); }
static unsigned __shfl_xor_sync(unsigned, unsigned number, int other) {
    static thread_local unsigned numbers[1024];
    numbers[threadIdx.x] = number;
    __syncwarp();
    const unsigned found = numbers[threadIdx.x ^ other];
    __syncwarp();
    return found;
}
static unsigned __byte_perm(unsigned low, unsigned high, unsigned which) {
    const uint64_t bytes = (uint64_t)high << 32 | low;
    unsigned chosen = 0;
    for (int k = 0; k < 4; ++k) chosen |= (bytes >> 8 * (which >> 4 * k & 7) & 255) << 8 * k;
    return chosen;
}
static int __popc(unsigned bits) { return __builtin_popcount(bits); }
static long long clock64() { static long long cycles = 0; return cycles += 1000000000; }
extern "C" void __ubsan_handle_type_mismatch_v1(void *, void *) { longjmp(leave, 1); }

// Single-precision kernels flush denormal numbers to zero: CuPy compiles with -ftz=true.
#if defined(__x86_64__)
#include <xmmintrin.h>
struct Flush {
    unsigned before = _mm_getcsr();
    explicit Flush(bool on) { if (on) _mm_setcsr(before | 0x8040); }
    ~Flush() { _mm_setcsr(before); }
};
#elif defined(__aarch64__)
struct Flush {
    uint64_t before;
    explicit Flush(bool on) {
        asm volatile("mrs %0, fpcr" : "=r"(before));
        if (on) asm volatile("msr fpcr, %0" : : "r"(before | (1u << 24)));
    }
    ~Flush() { asm volatile("msr fpcr, %0" : : "r"(before)); }
};
#endif

struct float16 {
    uint16_t bits;
    float16() {}
    template <class T> float16(T value) : bits(narrow((float)value)) {}
    operator float() const {
        unsigned sign = bits >> 15, exponent = bits >> 10 & 31, rest = bits & 1023;
        float size = exponent == 31 ? (rest ? NAN : INFINITY)
                     : exponent     ? std::ldexp(1024.f + rest, (int)exponent - 25)
                                    : std::ldexp((float)rest, -24);
        return sign ? -size : size;
    }
    static uint16_t narrow(float value) {
        uint32_t word;
        memcpy(&word, &value, 4);
        uint32_t sign = word >> 16 & 0x8000, size = word & 0x7fffffff;
        if (size > 0x7f800000) return sign | 0x7e00;
        if (size >= 0x477ff000) return sign | 0x7c00;
        if (size < 0x38800000) {  // denormal: adding 1/2 rounds it to a multiple of 2^-24
            float shifted;
            memcpy(&shifted, &size, 4);
            shifted += 0.5f;
            memcpy(&word, &shifted, 4);
            return sign | (word - 0x3f000000);
        }
        return sign | ((size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13);
    }
};
struct bfloat16 {
    uint16_t bits;
    bfloat16() {}
    template <class T> bfloat16(T given) {
        float value = (float)given;
        uint32_t word;
        memcpy(&word, &value, 4);
        bits = (word & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (word + 0x7fff + (word >> 16 & 1)) >> 16;
    }
    operator float() const {
        uint32_t word = (uint32_t)bits << 16;
        float value;
        memcpy(&value, &word, 4);
        return value;
    }
};

namespace cupy { template <int N> struct UnstructuredVoid { char data[N]; }; }

template <class T, int N, bool contiguous = false, bool small = false> struct CArray {
    static const int ndim = N;
    typedef ptrdiff_t index_t;
    T *data_;
    ptrdiff_t size_, shape_[N ? N : 1], strides_[N ? N : 1];
    ptrdiff_t size() const { return size_; }
    const ptrdiff_t *shape() const { return shape_; }
    const ptrdiff_t *strides() const { return strides_; }
    T &operator[](const ptrdiff_t *index) const {
        char *place = (char *)data_;
        for (int k = 0; k < N; ++k) place += strides_[k] * index[k];
        return *(T *)place;
    }
    template <class I>
    typename std::enable_if<std::is_integral<I>::value || std::is_enum<I>::value, T &>::type
    operator[](I given) const {
        ptrdiff_t index = given;
        if (contiguous) return data_[index];
        char *place = (char *)data_;
        for (int k = N - 1; k >= 0; --k) {
            place += strides_[k] * (index % shape_[k]);
            index /= shape_[k];
        }
        return *(T *)place;
    }
};

template <int N, bool small = false> struct CIndexer {
    ptrdiff_t size_, shape_[N ? N : 1], index_[N ? N : 1];
    ptrdiff_t size() const { return size_; }
    void set(ptrdiff_t i) {
        for (int k = N - 1; k >= 0; --k) {
            index_[k] = i % shape_[k];
            i /= shape_[k];
        }
    }
    const ptrdiff_t *get() const { return index_; }
};

#define CUPY_FOR(i, n)                                                                 \
    for (ptrdiff_t i = (ptrdiff_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n);      \
         i += (ptrdiff_t)blockDim.x * gridDim.x)

// Runs a kernel: 0, or 1 for an address that is not aligned, 2 for threads that wait for ever.
struct Thread { ucontext_t at; std::vector<char> stack; bool done; };
static thread_local std::vector<Thread> threads;
static thread_local void (*one_thread)();
static void to_the_end() {
    one_thread();
    threads[threadIdx.x].done = true;
}

// Runs the threads from the first to the last; whoever comes to a barrier waits for the next round.
static bool in_turns(unsigned first, unsigned last) {
    threads.resize(std::max<size_t>(threads.size(), last));
    for (unsigned k = first; k < last; ++k) {
        Thread &thread = threads[k];
        thread.done = false;
        thread.stack.resize(1 << 16);
        getcontext(&thread.at);
        thread.at.uc_stack.ss_sp = thread.stack.data();
        thread.at.uc_stack.ss_size = thread.stack.size();
        thread.at.uc_link = &between;
        makecontext(&thread.at, to_the_end, 0);
    }
    for (unsigned done = 0; done == 0;) {
        for (unsigned k = first; k < last; ++k) {
            threadIdx.x = k;
            running = &threads[k].at;
            swapcontext(&between, running);
            done += threads[k].done;
        }
        if (done != 0) return done == last - first;
    }
    return true;
}

// So many threads wait for each other at barriers; 0: there are none.
static int run_all(void (*kernel)(), unsigned grid, unsigned block, unsigned together, bool flush) {
    Flush flushing(flush);
    if (setjmp(leave)) return 1;
    one_thread = kernel;
    blockDim = {block, 1, 1};
    gridDim = {grid, 1, 1};
    for (unsigned b = 0; b < grid; ++b) {
        blockIdx = {b, 0, 0};
        for (unsigned k = 0; together != 0 && k < block; k += together) {
            if (!in_turns(k, std::min(block, k + together))) return 2;
        }
        for (unsigned k = 0; together == 0 && k < block; ++k) {
            threadIdx = {k, 0, 0};
            kernel();
        }
    }
    return 0;
}
