// The process's Vulkan instance, its physical devices, and what the validation layer says.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "features.h"
#include "loader.h"

namespace greencc::vulkan {

class Device;

// One per process, made on first use and never destroyed: drivers and tensors outlive static objects.
class Instance {
 public:
  // Throws a RuntimeError when there is no loader, or in a forked child of a process that used Vulkan.
  static Instance& Get();

  // Whether this process was forked from one that used Vulkan, where drivers can do nothing.
  static bool Forked();

  // Physical devices, the fastest kind first: discrete, integrated, virtual, others, CPU.
  const std::vector<PhysicalDevice>& physical_devices() const { return physical_; }

  // The logical device, opened on first use. Throws a RuntimeError when there is no such device, when it lacks what
  // every kernel needs, or when it does not open.
  Device& device(int index);

  // Devices that have been opened.
  std::vector<Device*> open_devices();

  // Warnings and errors of the validation layer since the last call. Starts no Vulkan.
  static std::vector<std::string> TakeMessages();

  const InstanceFunctions& vk() const { return vk_; }

 private:
  Instance();
  void Create(const GlobalFunctions& global);
  void Enumerate();

  static VKAPI_ATTR VkBool32 VKAPI_CALL OnMessage(VkDebugUtilsMessageSeverityFlagBitsEXT severity,
                                                  VkDebugUtilsMessageTypeFlagsEXT types,
                                                  const VkDebugUtilsMessengerCallbackDataEXT* data, void*);

  VkInstance handle_ = VK_NULL_HANDLE;
  InstanceFunctions vk_;
  std::vector<PhysicalDevice> physical_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Device>> devices_;
};

}  // namespace greencc::vulkan
