#include "loader.h"

#include <dlfcn.h>
#include <tvm/ffi/error.h>

#include <cstdlib>

namespace greencc::vulkan {

namespace {

#if defined(__APPLE__)
constexpr const char* kLoaders[] = {"libvulkan.1.dylib", "libvulkan.dylib", "libMoltenVK.dylib"};
#else
constexpr const char* kLoaders[] = {"libvulkan.so.1", "libvulkan.so"};
#endif

void* OpenLoader() {
  if (const char* chosen = std::getenv("GREENCC_VULKAN_LOADER"); chosen != nullptr && *chosen != '\0') {
    if (void* handle = dlopen(chosen, RTLD_NOW | RTLD_LOCAL)) return handle;
    TVM_FFI_THROW(RuntimeError) << "the Vulkan loader that GREENCC_VULKAN_LOADER names can't be loaded: " << dlerror();
  }
  std::string reason;
  for (const char* name : kLoaders) {
    if (void* handle = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return handle;
    if (reason.empty()) reason = dlerror();
  }
  TVM_FFI_THROW(RuntimeError) << "this machine has no Vulkan loader (" << reason
                              << "): install it with the graphics driver, or the package libvulkan1";
  TVM_FFI_UNREACHABLE();
}

[[noreturn]] void ThrowMissing(const char* name) {
  TVM_FFI_THROW(RuntimeError) << "the Vulkan driver has no function " << name << ": Vulkan 1.1 is needed";
  TVM_FFI_UNREACHABLE();
}

}  // namespace

GlobalFunctions LoadGlobalFunctions() {
  // Never closed: drivers keep threads and exit handlers.
  void* handle = OpenLoader();
  GlobalFunctions functions;
  functions.vkGetInstanceProcAddr =
      reinterpret_cast<PFN_vkGetInstanceProcAddr>(dlsym(handle, "vkGetInstanceProcAddr"));
  if (functions.vkGetInstanceProcAddr == nullptr) ThrowMissing("vkGetInstanceProcAddr");
#define GREENCC_VULKAN_LOAD(name)                                                                       \
  functions.name = reinterpret_cast<PFN_##name>(functions.vkGetInstanceProcAddr(VK_NULL_HANDLE, #name)); \
  if (functions.name == nullptr) ThrowMissing(#name);
  GREENCC_VULKAN_GLOBAL_FUNCTIONS(GREENCC_VULKAN_LOAD)
#undef GREENCC_VULKAN_LOAD
  return functions;
}

InstanceFunctions LoadInstanceFunctions(const GlobalFunctions& global, VkInstance instance) {
  InstanceFunctions functions;
#define GREENCC_VULKAN_LOAD(name)                                                                 \
  functions.name = reinterpret_cast<PFN_##name>(global.vkGetInstanceProcAddr(instance, #name)); \
  if (functions.name == nullptr) ThrowMissing(#name);
  GREENCC_VULKAN_INSTANCE_FUNCTIONS(GREENCC_VULKAN_LOAD)
#undef GREENCC_VULKAN_LOAD
  functions.vkCreateDebugUtilsMessengerEXT = reinterpret_cast<PFN_vkCreateDebugUtilsMessengerEXT>(
      global.vkGetInstanceProcAddr(instance, "vkCreateDebugUtilsMessengerEXT"));
  functions.vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR =
      global.vkGetInstanceProcAddr(instance, "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR");
  return functions;
}

DeviceFunctions LoadDeviceFunctions(const InstanceFunctions& instance, VkDevice device) {
  DeviceFunctions functions;
#define GREENCC_VULKAN_LOAD(name)                                                            \
  functions.name = reinterpret_cast<PFN_##name>(instance.vkGetDeviceProcAddr(device, #name)); \
  if (functions.name == nullptr) ThrowMissing(#name);
  GREENCC_VULKAN_DEVICE_FUNCTIONS(GREENCC_VULKAN_LOAD)
#undef GREENCC_VULKAN_LOAD
  functions.vkCmdPushDescriptorSetKHR = reinterpret_cast<PFN_vkCmdPushDescriptorSetKHR>(
      instance.vkGetDeviceProcAddr(device, "vkCmdPushDescriptorSetKHR"));
  return functions;
}

}  // namespace greencc::vulkan
