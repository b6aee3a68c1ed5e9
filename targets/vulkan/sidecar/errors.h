// Vulkan's results as sentences.
#pragma once

#include <cstdint>
#include <string>

#include "loader.h"

namespace greencc::vulkan {

// The constant's name, or the number of one that this code does not know.
std::string ResultName(VkResult result);

// Throws a RuntimeError "DOING failed: RESULT" unless `result` is a success. For calls that belong to no device.
void CheckResult(VkResult result, const char* doing);

// Bytes for people: "512 B", "1.5 MiB".
std::string Bytes(std::uint64_t bytes);

}  // namespace greencc::vulkan
