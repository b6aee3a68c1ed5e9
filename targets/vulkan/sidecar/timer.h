// The timer of time_evaluator.
#pragma once

#include <tvm/ffi/object.h>
#include <tvm/ffi/device.h>

namespace greencc::vulkan {

// A timer (runtime.TimerNode) for the calling thread's stream, which TVM starts.
tvm::ffi::ObjectRef StartTimer(DLDevice device);

}  // namespace greencc::vulkan
