// What loading this library adds to the runtime's registry.

#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/reflection/registry.h>

#include "describe.h"
#include "device.h"
#include "device_api.h"
#include "instance.h"
#include "module.h"
#include "stream.h"
#include "streams.h"
#include "timer.h"

// The versions that the headers are of; the build passes them.
#ifndef GREENCC_TVM_VERSION
#error "compile with -DGREENCC_TVM_VERSION and -DGREENCC_TVM_FFI_VERSION"
#endif

// A loader can find this in the file without loading it: a library for another TVM may not even load.
extern "C" __attribute__((visibility("default"), used)) const char greencc_vulkan_abi[] =
    "greencc-vulkan-abi:tvm=" GREENCC_TVM_VERSION ";tvm_ffi=" GREENCC_TVM_FFI_VERSION ";";

namespace greencc::vulkan {

namespace {

namespace ffi = tvm::ffi;

ffi::Any TargetProperty(DLDevice device, ffi::String property) {
  ffi::Any result;
  TheDeviceApi()->GetTargetProperty(device, property, &result);
  return result;
}

Device& OpenedDevice(int index) { return Instance::Get().device(index); }

void Discard(int index) {
  // In a forked child, and before a device is opened, there is nothing.
  if (Instance::Forked()) return;
  for (Device* device : Instance::Get().open_devices()) {
    if (device->index() == index) CurrentStream(*device).DropDownloads();
  }
}

// Of the calling thread.
ffi::String ProfileResults() {
  std::vector<KernelTime> all;
  for (Device* device : Instance::Get().open_devices()) {
    for (KernelTime& time : CurrentStream(*device).profile().Take()) all.push_back(std::move(time));
  }
  return TimesJson(all);
}

}  // namespace

TVM_FFI_STATIC_INIT_BLOCK() {
  // A second copy of the library leaves the first one's functions alone.
  if (ffi::Function::GetGlobal("device_api.vulkan").has_value()) return;
  ffi::reflection::GlobalDef()
      .def("device_api.vulkan", []() -> void* { return TheDeviceApi(); })
      .def("device_api.vulkan.get_target_property", TargetProperty)
      .def("ffi.Module.load_from_bytes.vulkan", KernelModule::FromBytes)
      .def("greencc.vulkan.abi", []() { return ffi::String(greencc_vulkan_abi); })
      .def("greencc.vulkan.devices", []() { return DevicesJson(Instance::Get().physical_devices()); })
      .def("greencc.vulkan.discard", Discard)
      .def("greencc.vulkan.module",
           [](ffi::String json, ffi::Bytes spirv) {
             return ffi::Module(ffi::make_object<KernelModule>(std::string(json.data(), json.size()),
                                                               std::string(spirv.data(), spirv.size())));
           })
      .def("greencc.vulkan.profile", Profile::Turn)
      .def("greencc.vulkan.profile_results", ProfileResults)
      .def("greencc.vulkan.reset_statistics", [](int index) { OpenedDevice(index).statistics().Reset(); })
      .def("greencc.vulkan.statistics", [](int index) { return StatisticsJson(OpenedDevice(index).statistics()); })
      .def("runtime.timer.vulkan", StartTimer)
      .def("greencc.vulkan.validation_messages", []() { return TextsJson(Instance::TakeMessages()); });
}

}  // namespace greencc::vulkan
