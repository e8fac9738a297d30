#include "coppice/launch/launch.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice::launch {
namespace {

/// The variables of one launcher, with errors that name them.
class Variables {
 public:
  Variables(const Environment& environment, std::string launcher)
      : environment_(environment), launcher_(std::move(launcher)) {}

  bool has(const std::string& name) const { return environment_(name).has_value(); }

  /// The first of `names` that is set; the error names them all.
  std::string text(std::initializer_list<const char*> names) const {
    for (const char* name : names) {
      if (auto value = environment_(name)) return *value;
    }
    std::vector<std::string> all(names.begin(), names.end());
    throw Error(ErrorCode::kUsage, cat(launcher_, " started this process, but ", join(all, " or "),
                                       " is not set; set it for every rank, or start without a launcher"));
  }

  int64_t number(std::initializer_list<const char*> names, int64_t least, int64_t most) const {
    const std::string value = text(names);
    int64_t out = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), out);
    if (error != std::errc() || end != value.data() + value.size() || out < least || out > most) {
      throw Error(ErrorCode::kUsage,
                  cat(set_name(names), " is '", shown(value), "'; wanted a whole number from ", least, " to ", most));
    }
    return out;
  }

  /// Rank, size and local rank, which have to fit each other.
  Launch place(std::initializer_list<const char*> rank, std::initializer_list<const char*> size,
               std::initializer_list<const char*> local_rank) const {
    Launch launch{.launcher = launcher_};
    launch.size = number(size, 1, 1'000'000);
    launch.rank = number(rank, 0, 1'000'000);
    launch.local_rank = number(local_rank, 0, 1'000'000);
    if (launch.rank >= launch.size || launch.local_rank > launch.rank) {
      throw Error(ErrorCode::kUsage,
                  cat(set_name(rank), "=", launch.rank, ", ", set_name(size), "=", launch.size, " and ",
                      set_name(local_rank), "=", launch.local_rank,
                      " contradict each other; wanted ranks below the size, and local ranks up to the rank"));
    }
    return launch;
  }

 private:
  std::string set_name(std::initializer_list<const char*> names) const {
    for (const char* name : names) {
      if (environment_(name)) return name;
    }
    return *names.begin();
  }

  const Environment& environment_;
  const std::string launcher_;
};

constexpr int64_t kMostPort = 65'535;

/// A port that all ranks of a job come to by its name, below those that the system gives away.
uint16_t port_from(std::string_view job) {
  uint32_t hash = 2'166'136'261;
  for (const char c : job) hash = (hash ^ static_cast<unsigned char>(c)) * 16'777'619;
  return static_cast<uint16_t>(12'000 + hash % 20'000);
}

uint16_t given_port(const Variables& variables) {
  return static_cast<uint16_t>(variables.number({"MASTER_PORT"}, 1, kMostPort));
}

std::optional<std::string> slurm_first_node(const Environment& environment) {
  for (const char* name : {"SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"}) {
    if (const auto list = environment(name)) return expand_node_list(*list).front();
  }
  return environment("SLURM_LAUNCH_NODE_IPADDR");
}

Launch torchrun(const Environment& environment) {
  const Variables variables(environment, "torchrun (or what sets RANK and WORLD_SIZE)");
  Launch launch = variables.place({"RANK"}, {"WORLD_SIZE"}, {"LOCAL_RANK"});
  launch.launcher = "torchrun";
  if (variables.has("TORCHELASTIC_RESTART_COUNT")) {
    launch.restart = variables.number({"TORCHELASTIC_RESTART_COUNT"}, 0, 1'000'000'000);
  }
  launch.agent_store = environment("TORCHELASTIC_USE_AGENT_STORE") == "True";
  if (launch.size == 1) return launch;
  launch.host = variables.text({"MASTER_ADDR"});
  launch.port = given_port(variables);
  return launch;
}

/// Where the ranks of an MPI meet. `on_this_host` of its ranks are on this host; `job` names the job, if known.
void set_meeting(Launch& launch, const Environment& environment, const Variables& variables, int64_t on_this_host,
                 const std::optional<std::string>& job) {
  if (const auto given = environment("MASTER_ADDR")) {
    launch.host = *given;
  } else if (on_this_host == launch.size) {
    launch.host = "127.0.0.1";
  } else if (const auto node = slurm_first_node(environment)) {
    launch.host = *node;
  } else {
    launch.host = variables.text({"MASTER_ADDR"});
  }
  launch.port = job && !variables.has("MASTER_PORT") ? port_from(*job) : given_port(variables);
}

Launch open_mpi(const Environment& environment) {
  const Variables variables(environment, "Open MPI");
  Launch launch = variables.place({"OMPI_COMM_WORLD_RANK"}, {"OMPI_COMM_WORLD_SIZE"}, {"OMPI_COMM_WORLD_LOCAL_RANK"});
  if (launch.size == 1) return launch;
  auto job = environment("PMIX_NAMESPACE");
  if (!job) job = environment("OMPI_MCA_ess_base_jobid");
  const int64_t here = variables.has("OMPI_COMM_WORLD_LOCAL_SIZE")
                           ? variables.number({"OMPI_COMM_WORLD_LOCAL_SIZE"}, 1, launch.size)
                           : 0;
  set_meeting(launch, environment, variables, here, job);
  return launch;
}

Launch mpich(const Environment& environment) {
  const Variables variables(environment, "MPICH or Intel MPI");
  Launch launch =
      variables.place({"PMI_RANK"}, {"PMI_SIZE"}, {"MPI_LOCALRANKID", "PALS_LOCAL_RANKID", "SLURM_LOCALID"});
  if (launch.size == 1) return launch;
  const int64_t here = variables.has("MPI_LOCALNRANKS") ? variables.number({"MPI_LOCALNRANKS"}, 1, launch.size) : 0;
  set_meeting(launch, environment, variables, here, environment("SLURM_JOB_ID"));
  return launch;
}

Launch slurm(const Environment& environment) {
  const Variables variables(environment, "Slurm");
  Launch launch =
      variables.place({"SLURM_PROCID"}, {"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"}, {"SLURM_LOCALID"});
  if (launch.size == 1) return launch;
  if (const auto given = environment("MASTER_ADDR")) {
    launch.host = *given;
  } else if (const auto node = slurm_first_node(environment)) {
    launch.host = *node;
  } else {
    launch.host = variables.text({"MASTER_ADDR", "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"});
  }
  launch.port = variables.has("MASTER_PORT")
                    ? given_port(variables)
                    : port_from(cat(variables.text({"SLURM_JOB_ID", "SLURM_JOBID", "MASTER_PORT"}), ".",
                                    variables.text({"SLURM_STEP_ID", "SLURM_STEPID"})));
  return launch;
}

}  // namespace

Environment process_environment() {
  return [](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    if (value == nullptr || *value == '\0') return std::nullopt;
    return value;
  };
}

Launch read_launch(const Environment& environment) {
  const auto any = [&](std::initializer_list<const char*> names) {
    return std::ranges::any_of(names, [&](const char* name) { return environment(name).has_value(); });
  };
  if (any({"RANK", "WORLD_SIZE"})) return torchrun(environment);
  if (any({"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"})) return open_mpi(environment);
  // Within a job of Slurm but outside srun, in a batch script or an interactive shell, there is one process. srun may set
  // PMI's variables too; if the rank there is another, mpirun has started the ranks, by way of srun.
  const bool srun = any({"SLURM_STEP_ID", "SLURM_STEPID"}) && any({"SLURM_PROCID"});
  const bool pmi = any({"PMI_RANK", "PMI_SIZE"});
  if (srun && (!pmi || environment("PMI_RANK") == environment("SLURM_PROCID"))) return slurm(environment);
  if (pmi) return mpich(environment);
  return {};
}

}  // namespace coppice::launch
