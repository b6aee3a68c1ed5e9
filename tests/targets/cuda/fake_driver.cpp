// A driver and a CUDA runtime library that compute nothing and write down what is asked of them, one line each, into
// the file that FAKE_CUDA_LOG names. Device memory is host memory. FAKE_CUDA_DEVICES is the number of GPUs.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {
bool capturing = false;
void note(const char* text) {
  if (FILE* log = std::fopen(std::getenv("FAKE_CUDA_LOG"), "a")) {
    std::fprintf(log, "%s%s\n", capturing ? "captured " : "", text);
    std::fclose(log);
  }
}
int devices() {
  const char* text = std::getenv("FAKE_CUDA_DEVICES");
  return text ? std::atoi(text) : 1;
}
struct LaunchConfig {  // CUlaunchConfig
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
  void* attributes;
  unsigned attribute_count;
};
}  // namespace

extern "C" {
int cuInit(unsigned) { return devices() ? 0 : 100; }
int cuDeviceGetCount(int* count) { *count = devices(); return 0; }
int cuDeviceGet(int* device, int index) { *device = index; return 0; }
int cuDeviceGetName(char* name, int size, int) { std::snprintf(name, size, "Fake GPU"); return 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int) { *bytes = size_t(80) << 30; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 6 : attribute == 16 ? 84 : 0;
  return 0;
}
int cuModuleLoadData(void** module, const void* image) {
  *module = const_cast<void*>(image);
  note(std::memcmp(image, "\x7f" "ELF", 4) == 0 ? "load cubin" : "load something else");
  return 0;
}
int cuModuleUnload(void*) { return 0; }
int cuModuleGetFunction(void** function, void*, const char* name) { *function = strdup(name); return 0; }
int cuFuncSetAttribute(void*, int, int) { return 0; }
int cuGetErrorName(int, const char** name) { *name = "fake"; return 0; }
int cuGetErrorString(int, const char** text) { *text = "fake"; return 0; }
int cuTensorMapEncodeTiled() { return 1; }
int cuLaunchKernelEx(const LaunchConfig* config, void* function, void**, void**) {
  char text[256];
  std::snprintf(text, sizeof text, "launch %s grid=%u,%u,%u block=%u,%u,%u", static_cast<char*>(function),
                config->grid[0], config->grid[1], config->grid[2], config->block[0], config->block[1],
                config->block[2]);
  note(text);
  return 0;
}

int cudaGetDevice(int* device) { *device = 0; return 0; }
int cudaSetDevice(int) { return 0; }
int cudaGetDeviceCount(int* count) { *count = devices(); return 0; }
int cudaGetDeviceProperties(void*, int) { return 1; }
int cudaDeviceGetAttribute(int* value, int, int) { *value = 0; return 0; }
int cudaMemGetInfo(size_t* free, size_t* total) { *free = *total = size_t(80) << 30; return 0; }
int cudaMalloc(void** memory, size_t bytes) {
  note(capturing ? "malloc: not while capturing" : "malloc");
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(*memory, 0, bytes);
  return 0;
}
int cudaMallocHost(void** memory, size_t bytes) { return cudaMalloc(memory, bytes); }
int cudaFree(void* memory) { std::free(memory); return 0; }
int cudaFreeHost(void* memory) { return cudaFree(memory); }
int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, void*) {
  note("copy");
  std::memcpy(to, from, bytes);
  return 0;
}
int cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, void*) {
  return cudaMemcpyAsync(to, from, bytes, 0, nullptr);
}
int cudaStreamCreate(void** stream) { *stream = std::malloc(1); return 0; }
int cudaStreamCreateWithFlags(void** stream, unsigned) { return cudaStreamCreate(stream); }
int cudaStreamDestroy(void* stream) { std::free(stream); return 0; }
int cudaStreamSynchronize(void*) { note("synchronize"); return 0; }
int cudaStreamWaitEvent(void*, void*, unsigned) { return 0; }
int cudaStreamBeginCapture(void*, int) { capturing = true; return 0; }
int cudaStreamEndCapture(void*, void** graph) { capturing = false; *graph = std::malloc(1); return 0; }
int cudaGraphInstantiate(void** executable, void*, unsigned long long) { *executable = std::malloc(1); return 0; }
int cudaGraphDestroy(void* graph) { std::free(graph); return 0; }
int cudaGraphExecDestroy(void* executable) { std::free(executable); return 0; }
int cudaGraphLaunch(void*, void*) { note("launch graph"); return 0; }
int cudaEventCreate(void** event) { *event = std::malloc(1); return 0; }
int cudaEventDestroy(void* event) { std::free(event); return 0; }
int cudaEventRecord(void*, void*) { return 0; }
int cudaEventSynchronize(void*) { return 0; }
int cudaEventElapsedTime(float* milliseconds, void*, void*) { *milliseconds = 1; return 0; }
int cudaPeekAtLastError() { return 0; }
int cudaGetLastError() { return 0; }
const char* cudaGetErrorName(int) { return "fake"; }
const char* cudaGetErrorString(int) { return "fake"; }
}
