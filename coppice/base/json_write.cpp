#include "coppice/base/json.h"
#include "coppice/base/text.h"

namespace coppice {

void append_json_text(std::string& out, std::string_view text) {
  constexpr std::string_view kHex = "0123456789abcdef";
  out += '"';
  for (const char c : text) {
    switch (c) {
      case '"': out += "\\\""; break;
      case '\\': out += "\\\\"; break;
      case '\n': out += "\\n"; break;
      case '\r': out += "\\r"; break;
      case '\t': out += "\\t"; break;
      case '\b': out += "\\b"; break;
      case '\f': out += "\\f"; break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out += "\\u00";
          out += kHex[static_cast<size_t>(c) >> 4];
          out += kHex[static_cast<size_t>(c) & 15];
        } else {
          out += c;
        }
    }
  }
  out += '"';
}

std::string Json::dump(int indent) const {
  std::string out;
  write(out, indent, 0);
  return out;
}

void Json::write(std::string& out, int indent, int level) const {
  const auto new_line = [&](int at) {
    if (indent >= 0) out.append(1, '\n').append(static_cast<size_t>(indent) * static_cast<size_t>(at), ' ');
  };
  const auto separate = [&](bool first) {
    if (!first) out += indent >= 0 ? "," : ", ";
    new_line(level + 1);
  };
  switch (kind_) {
    case Kind::kNull: out += "null"; return;
    case Kind::kBool: out += value_.boolean ? "true" : "false"; return;
    case Kind::kInt: out += std::to_string(value_.integer); return;
    case Kind::kFloat: out += *value_.text; return;
    case Kind::kString: append_json_text(out, as_string()); return;
    case Kind::kArray: {
      const Array& all = items();
      if (all.empty()) break;
      out += '[';
      for (const Json& item : all) {
        separate(&item == all.data());
        item.write(out, indent, level + 1);
      }
      new_line(level);
      out += ']';
      return;
    }
    case Kind::kObject: {
      const Object& all = members();
      if (all.empty()) break;
      out += '{';
      for (const Member& member : all) {
        separate(&member == all.data());
        append_json_text(out, member.first);
        out += ": ";
        member.second.write(out, indent, level + 1);
      }
      new_line(level);
      out += '}';
      return;
    }
  }
  out += is_array() ? "[]" : "{}";
}

}  // namespace coppice
