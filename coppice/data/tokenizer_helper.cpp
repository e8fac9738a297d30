#include "coppice/data/tokenizer_helper.h"

#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <system_error>

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/text.h"
#include "coppice/data/cache_directory.h"

namespace coppice::data {
namespace fs = std::filesystem;
namespace {

// Frames to us: kind, u64 size, payload. R = ready (vocabulary size, eos id), M = no tokenizers, E = error text, I =
// ids. Frames from us: u64 documents, their u64 sizes, their text.
constexpr const char* kProgram = R"(
import array, os, signal, socket, struct, sys
sys.path = [p for p in sys.path if p]
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.environ["TOKENIZERS_PARALLELISM"] = "false"
channel = socket.socket(fileno=0).makefile("rwb")

def send(kind, payload):
    channel.write(kind + struct.pack("<Q", len(payload)) + payload)
    channel.flush()

def receive(size):
    data = channel.read(size)
    if len(data) < size:
        sys.exit(0)
    return data

try:
    import tokenizers
except ImportError as error:
    send(b"M", str(error).encode())
    sys.exit(0)
try:
    tokenizer = tokenizers.Tokenizer.from_str(open(3, encoding="utf-8").read())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    vocabulary = tokenizer.get_vocab(True)
    send(b"R", struct.pack("<qq", max(vocabulary.values()) + 1, vocabulary.get(sys.argv[1], -1)))
except Exception as error:
    send(b"E", str(error).encode())
    sys.exit(0)
encode_batch = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
while True:
    count, = struct.unpack("<Q", receive(8))
    sizes = struct.unpack("<%dQ" % count, receive(8 * count))
    try:
        texts = [receive(size).decode() for size in sizes]
        out = []
        for encoding in encode_batch(texts, add_special_tokens=False):
            ids = array.array("i", encoding.ids)
            out.append(struct.pack("<Q", len(ids)) + ids.tobytes())
        send(b"I", b"".join(out))
    except Exception as error:
        send(b"E", str(error).encode())
        sys.exit(0)
)";

constexpr std::string_view kHowToGetPython =
    "run tools/setup light, or set COPPICE_PYTHON to a Python that has `pip install tokenizers`";

template <class T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}
template <class T>
T take(std::string_view& from) {
  T value{};
  if (from.size() < sizeof value)
    throw Error(ErrorCode::kIo, "the tokenizer's helper process sent an incomplete answer (try again)");
  std::memcpy(&value, from.data(), sizeof value);
  from.remove_prefix(sizeof value);
  return value;
}

std::string how_it_ended(int status) {
  if (WIFSIGNALED(status)) return cat("was ended by signal ", WTERMSIG(status));
  return cat("ended with status ", WIFEXITED(status) ? WEXITSTATUS(status) : -1);
}

}  // namespace

TokenizerHelper::TokenizerHelper(const fs::path& python, const Descriptor& file, const fs::path& name,
                                 const std::string& eos_token)
    : python_(python), tokenizer_json_(name) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    throw Error(ErrorCode::kIo,
                cat("tokenizer's helper process: cannot make a socket: ", std::generic_category().message(errno)));
  }
  channel_ = Descriptor(ends[0]);
  Descriptor its_end(ends[1]);
  // stdout: its output must not mix with our results. 3: it reads the file that was checked.
  const Subprocess::Handed handed[] = {{its_end.get(), STDIN_FILENO}, {STDERR_FILENO, STDOUT_FILENO}, {file.get(), 3}};
  process_.emplace(std::vector<std::string>{python.string(), "-c", kProgram, eos_token}, fs::path(), handed,
                   std::string(kHowToGetPython));
  its_end.close();
  const Message hello = receive_message();
  std::string_view payload = hello.payload;
  if (hello.kind == 'M')
    throw Error(ErrorCode::kIo, cat(python, ": cannot import tokenizers: ", payload, " (", kHowToGetPython, ")"));
  if (hello.kind == 'E') throw Error(ErrorCode::kFormat, cat(name, ": ", payload));
  vocab_size_ = take<int64_t>(payload);
  eos_id_ = take<int64_t>(payload);
}

void TokenizerHelper::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const auto n = ::send(channel_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) {
      wait_to_write(channel_.get());
      continue;
    }
    if (n < 0) return;  // it has ended; receive() reports how
    bytes.remove_prefix(static_cast<size_t>(n));
  }
}

void TokenizerHelper::receive(void* data, size_t bytes) {
  auto* to = static_cast<char*>(data);
  while (bytes > 0) {
    wait_to_read(channel_.get());
    const auto n = ::recv(channel_.get(), to, bytes, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      ::shutdown(channel_.get(), SHUT_RDWR);
      const int status = process_->wait();
      process_.reset();
      throw Error(ErrorCode::kIo, cat(tokenizer_json_, ": its helper process (", python_, ") ", how_it_ended(status),
                                      "; its own messages are above (", kHowToGetPython, ")"));
    }
    to += n;
    bytes -= static_cast<size_t>(n);
  }
}

TokenizerHelper::Message TokenizerHelper::receive_message() {
  Message out{};
  uint64_t bytes = 0;
  receive(&out.kind, 1);
  receive(&bytes, sizeof bytes);
  out.payload.resize(bytes);
  receive(out.payload.data(), bytes);
  return out;
}

std::vector<std::vector<int32_t>> TokenizerHelper::encode(std::span<const std::string_view> documents) {
  std::string head;
  put(head, static_cast<uint64_t>(documents.size()));
  for (const auto document : documents) put(head, static_cast<uint64_t>(document.size()));
  send(head);
  for (const auto document : documents) send(document);

  const Message answer = receive_message();
  if (answer.kind != 'I') throw Error(ErrorCode::kFormat, cat(tokenizer_json_, ": ", answer.payload));
  std::string_view payload = answer.payload;
  std::vector<std::vector<int32_t>> out(documents.size());
  for (auto& ids : out) {
    ids.resize(take<uint64_t>(payload));
    if (payload.size() < ids.size() * sizeof(int32_t))
      throw Error(ErrorCode::kIo, "the tokenizer's helper process sent an incomplete answer (try again)");
    std::memcpy(ids.data(), payload.data(), ids.size() * sizeof(int32_t));
    payload.remove_prefix(ids.size() * sizeof(int32_t));
  }
  return out;
}

fs::path tokenizers_python() {
  if (const char* chosen = std::getenv("COPPICE_PYTHON"); chosen != nullptr && *chosen != '\0') return chosen;
  const fs::path cache = cache_directory();
  fs::path best;
  fs::file_time_type best_time = fs::file_time_type::min();
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(cache, ignored)) {
    const auto stamp = entry.path() / ".complete";
    if (!entry.path().filename().string().starts_with("venv-") || !fs::exists(stamp, ignored)) continue;
    bool has_tokenizers = false;
    for (const auto& lib : fs::directory_iterator(entry.path() / "lib", ignored)) {
      has_tokenizers = has_tokenizers || fs::exists(lib.path() / "site-packages" / "tokenizers", ignored);
    }
    if (has_tokenizers && fs::last_write_time(stamp, ignored) >= best_time) {
      best_time = fs::last_write_time(stamp, ignored);
      best = entry.path() / "bin" / "python";
    }
  }
  if (best.empty()) {
    throw Error(ErrorCode::kIo, cat("tokenizer.json requires a Python with PyPI tokenizers, but ", cache, " has none (",
                                    kHowToGetPython, ")"));
  }
  return best;
}

}  // namespace coppice::data
