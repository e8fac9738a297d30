#include <algorithm>
#include <set>

#include "coppice/base/sha256.h"
#include "coppice/base/text.h"
#include "coppice/io/checkpoint.h"

namespace coppice::io {
namespace {

// Keys of config.json that change neither what the model computes nor how its tensors lie on disk.
constexpr std::string_view kIgnoredKeys[] = {"transformers_version", "torch_dtype", "dtype",
                                             "_name_or_path",        "use_cache",   "architectures"};

// Keys sorted, numbers in one spelling: what does not change the value does not change the text.
Json canonical(const Json& value) {
  if (value.is_number()) return Json(value.as_double());
  if (value.is_array()) {
    Json::Array items;
    for (const auto& item : value.items()) items.push_back(canonical(item));
    return Json::array(std::move(items));
  }
  if (!value.is_object()) return value;
  Json::Object members;
  for (const auto& [key, member] : value.members()) members.emplace_back(key, canonical(member));
  std::ranges::sort(members, {}, &Json::Member::first);
  return Json::object(std::move(members));
}

}  // namespace

std::string model_digest(const Checkpoint& checkpoint, const std::vector<std::string>& router_tensors) {
  Sha256 digest;
  // Names as JSON text, so that no name can imitate the next line.
  std::string line;
  for (const auto& entry : checkpoint.entries()) {
    const TensorInfo& info = *entry.info;
    line.clear();
    append_json_text(line, info.name);
    digest.add(line.append(cat(" ", dtype_name(info.dtype), " ", shape_text(info.shape), "\n")));
  }
  Json config = checkpoint.config();
  for (const auto key : kIgnoredKeys) config.erase(key);
  digest.add(cat(canonical(config).dump(), "\n"));
  for (const auto& name : std::set(router_tensors.begin(), router_tensors.end())) {
    const auto entry = checkpoint.at(name);
    digest.add(cat(Json(name).dump(), " ", entry.info->bytes, "\n"));
    digest.add(entry.data());
    entry.file->release(*entry.info);
  }
  return digest.hex();
}

}  // namespace coppice::io
