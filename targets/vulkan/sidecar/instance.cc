#include "instance.h"

#include <pthread.h>
#include <tvm/ffi/error.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "device.h"
#include "errors.h"

namespace greencc::vulkan {

namespace {

constexpr const char* kValidationLayer = "VK_LAYER_KHRONOS_validation";
// A kernel that is wrong in each of its thousand launches must not fill the memory.
constexpr std::size_t kMostMessages = 1000;

std::atomic<bool> forked{false};

struct Messages {
  std::mutex mutex;
  std::vector<std::string> texts;
};

Messages& TheMessages() {
  static auto* messages = new Messages();
  return *messages;
}

template <typename T, typename Function, typename... Arguments>
std::vector<T> List(Function function, Arguments... arguments) {
  std::uint32_t count = 0;
  CheckResult(function(arguments..., &count, nullptr), "listing what the Vulkan loader offers");
  std::vector<T> items(count);
  if (count != 0) CheckResult(function(arguments..., &count, items.data()), "listing what the Vulkan loader offers");
  items.resize(count);
  return items;
}

template <typename T>
bool HasExtension(const std::vector<T>& extensions, std::string_view name) {
  return std::any_of(extensions.begin(), extensions.end(), [&](const T& e) { return name == e.extensionName; });
}

int Rank(VkPhysicalDeviceType type) {
  switch (type) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU: return 0;
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU: return 1;
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU: return 2;
    case VK_PHYSICAL_DEVICE_TYPE_CPU: return 4;
    default: return 3;
  }
}

}  // namespace

bool Instance::Forked() { return forked.load(std::memory_order_relaxed); }

Instance& Instance::Get() {
  static Instance* instance = new Instance();
  if (Forked()) {
    TVM_FFI_THROW(RuntimeError) << "Vulkan can't be used in a forked child of a process that has used it: start "
                                   "child processes with the 'spawn' method";
  }
  return *instance;
}

Instance::Instance() {
  GlobalFunctions global = LoadGlobalFunctions();
  Create(global);
  Enumerate();
  pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });
}

void Instance::Create(const GlobalFunctions& global) {
  std::uint32_t version = VK_API_VERSION_1_0;
  CheckResult(global.vkEnumerateInstanceVersion(&version), "asking for the Vulkan version");
  if (version < VK_API_VERSION_1_1) {
    TVM_FFI_THROW(RuntimeError) << "the Vulkan loader is of version 1.0: 1.1 is needed";
  }
  auto application = Structure<VkApplicationInfo>(VK_STRUCTURE_TYPE_APPLICATION_INFO);
  application.pApplicationName = "greencc";
  application.apiVersion = std::min<std::uint32_t>(version, VK_API_VERSION_1_3);
  auto info = Structure<VkInstanceCreateInfo>(VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO);
  info.pApplicationInfo = &application;
  std::vector<const char*> extensions, layers;
  auto offered = List<VkExtensionProperties>(global.vkEnumerateInstanceExtensionProperties, nullptr);
#ifdef VK_KHR_portability_enumeration
  if (HasExtension(offered, VK_KHR_PORTABILITY_ENUMERATION_EXTENSION_NAME)) {
    extensions.push_back(VK_KHR_PORTABILITY_ENUMERATION_EXTENSION_NAME);
    info.flags |= VK_INSTANCE_CREATE_ENUMERATE_PORTABILITY_BIT_KHR;
  }
#endif
  const char* wanted = std::getenv("GREENCC_VULKAN_VALIDATION");
  std::string validation = wanted == nullptr ? "" : wanted;
  auto messenger = Structure<VkDebugUtilsMessengerCreateInfoEXT>(
      VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT);
  auto synchronisation = Structure<VkValidationFeaturesEXT>(VK_STRUCTURE_TYPE_VALIDATION_FEATURES_EXT);
  VkValidationFeatureEnableEXT enabled = VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT;
  bool validates = !validation.empty() && validation != "0";
  if (validates) {
    auto found = List<VkLayerProperties>(global.vkEnumerateInstanceLayerProperties);
    if (std::none_of(found.begin(), found.end(),
                     [](const auto& layer) { return std::strcmp(layer.layerName, kValidationLayer) == 0; })) {
      TVM_FFI_THROW(RuntimeError) << "GREENCC_VULKAN_VALIDATION is set, but " << kValidationLayer
                                  << " is not installed: install the package vulkan-validationlayers";
    }
    layers.push_back(kValidationLayer);
    extensions.push_back(VK_EXT_DEBUG_UTILS_EXTENSION_NAME);
    messenger.messageSeverity =
        VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT;
    // Messages of the type GENERAL are about drivers that are installed for other hardware.
    messenger.messageType =
        VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_TYPE_PERFORMANCE_BIT_EXT;
    messenger.pfnUserCallback = OnMessage;
    info.pNext = &messenger;
    if (validation == "sync") {
      extensions.push_back(VK_EXT_VALIDATION_FEATURES_EXTENSION_NAME);
      synchronisation.enabledValidationFeatureCount = 1;
      synchronisation.pEnabledValidationFeatures = &enabled;
      messenger.pNext = &synchronisation;
    }
  }
  info.enabledExtensionCount = static_cast<std::uint32_t>(extensions.size());
  info.ppEnabledExtensionNames = extensions.data();
  info.enabledLayerCount = static_cast<std::uint32_t>(layers.size());
  info.ppEnabledLayerNames = layers.data();
  CheckResult(global.vkCreateInstance(&info, nullptr, &handle_), "starting Vulkan");
  vk_ = LoadInstanceFunctions(global, handle_);
  if (validates && vk_.vkCreateDebugUtilsMessengerEXT != nullptr) {
    messenger.pNext = nullptr;
    VkDebugUtilsMessengerEXT ignored;
    CheckResult(vk_.vkCreateDebugUtilsMessengerEXT(handle_, &messenger, nullptr, &ignored),
                "listening to the validation layer");
  }
}

void Instance::Enumerate() {
  auto handles = List<VkPhysicalDevice>(vk_.vkEnumeratePhysicalDevices, handle_);
  for (VkPhysicalDevice handle : handles) physical_.push_back(DescribeDevice(vk_, handle));
  std::stable_sort(physical_.begin(), physical_.end(), [](const PhysicalDevice& a, const PhysicalDevice& b) {
    return Rank(a.properties.deviceType) < Rank(b.properties.deviceType);
  });
  devices_.resize(physical_.size());
}

Device& Instance::device(int index) {
  if (index < 0 || static_cast<std::size_t>(index) >= physical_.size()) {
    TVM_FFI_THROW(RuntimeError) << "there is no device vulkan:" << index << ": this machine has " << physical_.size()
                                << " Vulkan device(s)";
  }
  std::lock_guard lock(mutex_);
  std::unique_ptr<Device>& device = devices_[static_cast<std::size_t>(index)];
  if (device == nullptr) device = std::make_unique<Device>(vk_, physical_[static_cast<std::size_t>(index)], index);
  return *device;
}

std::vector<Device*> Instance::open_devices() {
  std::lock_guard lock(mutex_);
  std::vector<Device*> open;
  for (const auto& device : devices_) {
    if (device != nullptr) open.push_back(device.get());
  }
  return open;
}

std::vector<std::string> Instance::TakeMessages() {
  Messages& messages = TheMessages();
  std::lock_guard lock(messages.mutex);
  return std::exchange(messages.texts, {});
}

VkBool32 Instance::OnMessage(VkDebugUtilsMessageSeverityFlagBitsEXT, VkDebugUtilsMessageTypeFlagsEXT,
                             const VkDebugUtilsMessengerCallbackDataEXT* data, void*) {
  Messages& messages = TheMessages();
  std::lock_guard lock(messages.mutex);
  if (messages.texts.size() < kMostMessages) messages.texts.emplace_back(data->pMessage);
  return VK_FALSE;
}

}  // namespace greencc::vulkan
