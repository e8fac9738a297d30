# Writes a C++ file with the families that are data:
#   cmake -DOUT=family_texts.cpp "-DFILES=a.toml;b.toml" -P embed_families.cmake
# Each file is one raw string literal.
set(text "// Written by cmake/embed_families.cmake.\n#include \"coppice/families/family_texts_detail.h\"\n\nnamespace coppice::families::detail {\n\nnamespace {\nconstexpr FamilyText kTexts[] = {\n")
foreach(file IN LISTS FILES)
  get_filename_component(name "${file}" NAME)
  file(READ "${file}" content)
  string(APPEND text "    {\"${name}\", R\"TOML(${content})TOML\"},\n")
endforeach()
string(APPEND text "};\n}  // namespace\n\nstd::span<const FamilyText> family_texts() { return kTexts; }\n\n}  // namespace coppice::families::detail\n")
file(WRITE "${OUT}" "${text}")
