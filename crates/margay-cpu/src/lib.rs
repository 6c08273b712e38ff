//! The CPU backend: packed weights, SIMD kernels chosen at run time, a thread pool that keeps its threads.
