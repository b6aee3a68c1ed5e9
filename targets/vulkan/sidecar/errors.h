// Vulkan's results and numbers as text.
#pragma once

#include <cstddef>
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

// "1.3.230".
std::string Version(std::uint32_t version);

// Two hexadecimal digits for each of `count` bytes.
std::string Hex(const std::uint8_t* bytes, std::size_t count);

}  // namespace greencc::vulkan
