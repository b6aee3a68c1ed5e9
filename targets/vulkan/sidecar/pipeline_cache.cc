#include "pipeline_cache.h"

#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include "device.h"
#include "errors.h"

namespace greencc::vulkan {

namespace {

// Drivers check the header of what they are given, few check the rest: a damaged file must not reach them.
struct Header {
  std::array<char, 8> magic;
  std::uint64_t size;
  std::uint64_t hash;
};
constexpr std::array<char, 8> kMagic = {'g', 'c', 'c', 'p', 'i', 'p', 'e', '1'};
constexpr std::uint64_t kMostBytes = std::uint64_t{256} << 20;

// FNV-1a, http://www.isthe.com/chongo/tech/comp/fnv/.
std::uint64_t Hash(const std::vector<char>& data) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (char byte : data) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3u;
  return hash;
}

std::string CacheFolder() {
  const char* base = std::getenv("XDG_CACHE_HOME");
  if (base != nullptr && *base == '/') return std::string(base) + "/greencc/vulkan";
  const char* home = std::getenv("HOME");
  return home == nullptr || *home != '/' ? "" : std::string(home) + "/.cache/greencc/vulkan";
}

std::vector<char> Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  Header header{};
  if (!file.read(reinterpret_cast<char*>(&header), sizeof(header))) return {};
  if (header.magic != kMagic || header.size > kMostBytes) return {};
  std::vector<char> data(header.size);
  if (!file.read(data.data(), static_cast<std::streamsize>(data.size())) || Hash(data) != header.hash) return {};
  return data;
}

}  // namespace

PipelineCache::PipelineCache(Device& device) : device_(device) {
  const VkPhysicalDeviceProperties& properties = device.physical().properties;
  std::string folder = CacheFolder();
  if (!folder.empty()) {
    path_ = folder + "/" + Hex(properties.pipelineCacheUUID, VK_UUID_SIZE) + "-" +
            Hex(device.physical().driver_uuid.data(), VK_UUID_SIZE) + "-" + std::to_string(properties.driverVersion) +
            ".bin";
  }
  std::vector<char> data = path_.empty() ? std::vector<char>() : Read(path_);
  auto info = Structure<VkPipelineCacheCreateInfo>(VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO);
  info.initialDataSize = data.size();
  info.pInitialData = data.data();
  device.Check(device.vk().vkCreatePipelineCache(device.handle(), &info, nullptr, &handle_), "making a pipeline cache");
}

void PipelineCache::Save() {
  if (path_.empty() || !grew_.exchange(false)) return;
  std::lock_guard lock(mutex_);
  std::size_t size = 0;
  if (device_.vk().vkGetPipelineCacheData(device_.handle(), handle_, &size, nullptr) != VK_SUCCESS) return;
  std::vector<char> data(size);
  if (device_.vk().vkGetPipelineCacheData(device_.handle(), handle_, &size, data.data()) != VK_SUCCESS) return;
  data.resize(size);
  if (data.empty() || data.size() > kMostBytes) return;
  Header header{kMagic, data.size(), Hash(data)};
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(path_).parent_path(), error);
  // Renamed when it is whole: another process reads the old file or the new one. Two equal GPUs have one file.
  std::string draft = path_ + "." + std::to_string(getpid()) + "-" + std::to_string(device_.index());
  {
    std::ofstream file(draft, std::ios::binary);
    file.write(reinterpret_cast<const char*>(&header), sizeof(header));
    file.write(data.data(), static_cast<std::streamsize>(data.size()));
    if (!file.flush()) {
      std::remove(draft.c_str());
      return;
    }
  }
  if (std::rename(draft.c_str(), path_.c_str()) != 0) std::remove(draft.c_str());
}

}  // namespace greencc::vulkan
