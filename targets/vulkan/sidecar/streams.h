// Which device and which stream of it the calling thread uses.
#pragma once

#include "device.h"
#include "stream.h"

namespace greencc::vulkan {

// The device that TVM set for this thread.
int CurrentDevice();
void SetCurrentDevice(int index);

// The stream that a handle of TVM's stands for: null is the calling thread's own.
Stream& StreamOf(Device& device, void* handle);

// The stream that was set for this thread, else its own.
Stream& CurrentStream(Device& device);

}  // namespace greencc::vulkan
