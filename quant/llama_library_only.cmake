# Included by CMake right after project("llama.cpp"). llama-cpp-python forces LLAMA_BUILD_COMMON on in
# the cache; a plain variable outranks the cache, and the Python package loads nothing of it.
set(LLAMA_BUILD_COMMON OFF)
