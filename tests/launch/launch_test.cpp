// What launchers set, as their manuals say.
#include "coppice/launch/launch.h"

#include <map>

#include "tests/testing/errors.h"

namespace coppice::launch {
namespace {

using ::testing::ElementsAre;
using Variables = std::map<std::string, std::string>;

Launch launch_with(const Variables& variables) {
  return read_launch([&](const std::string& name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    return found == variables.end() ? std::nullopt : std::optional(found->second);
  });
}

Variables with(Variables base, const Variables& more) {
  for (const auto& [name, value] : more) base[name] = value;
  return base;
}

Variables without(Variables base, const std::string& name) {
  base.erase(name);
  return base;
}

const Variables kTorchrun{{"RANK", "5"},
                          {"WORLD_SIZE", "8"},
                          {"LOCAL_RANK", "1"},
                          {"LOCAL_WORLD_SIZE", "4"},
                          {"MASTER_ADDR", "node7"},
                          {"MASTER_PORT", "29400"},
                          {"TORCHELASTIC_RESTART_COUNT", "2"},
                          {"TORCHELASTIC_USE_AGENT_STORE", "True"}};
const Variables kSrun{{"SLURM_PROCID", "5"},
                      {"SLURM_NTASKS", "8"},
                      {"SLURM_STEP_NUM_TASKS", "8"},
                      {"SLURM_LOCALID", "1"},
                      {"SLURM_JOB_ID", "123456"},
                      {"SLURM_STEP_ID", "0"},
                      {"SLURM_NODELIST", "n[3-4]"},
                      {"SLURM_STEP_NODELIST", "n[3-4]"},
                      {"SLURM_LAUNCH_NODE_IPADDR", "10.0.0.9"}};
const Variables kOpenMpi{{"OMPI_COMM_WORLD_RANK", "1"},
                         {"OMPI_COMM_WORLD_SIZE", "4"},
                         {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                         {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
                         {"PMIX_NAMESPACE", "4022534145"}};
const Variables kMpich{{"PMI_RANK", "3"}, {"PMI_SIZE", "4"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "2"}};

TEST(ReadLaunch, FindsOneProcessWithoutALauncher) {
  const Launch launch = launch_with({{"MASTER_ADDR", "node7"}, {"HOME", "/"}});
  EXPECT_EQ(launch.size, 1);
  EXPECT_EQ(launch.rank, 0);
  EXPECT_EQ(launch.launcher, "");
}

TEST(ReadLaunch, ReadsTorchrun) {
  const Launch launch = launch_with(kTorchrun);
  EXPECT_EQ(launch.launcher, "torchrun");
  EXPECT_EQ(launch.rank, 5);
  EXPECT_EQ(launch.size, 8);
  EXPECT_EQ(launch.local_rank, 1);
  EXPECT_EQ(launch.host, "node7");
  EXPECT_EQ(launch.port, 29400);
  EXPECT_EQ(launch.restart, 2);
  EXPECT_TRUE(launch.agent_store);
  EXPECT_FALSE(launch_with(without(kTorchrun, "TORCHELASTIC_USE_AGENT_STORE")).agent_store);
  EXPECT_EQ(launch_with(without(kTorchrun, "TORCHELASTIC_RESTART_COUNT")).restart, 0);
}

TEST(ReadLaunch, ReadsSrun) {
  const Launch launch = launch_with(kSrun);
  EXPECT_EQ(launch.launcher, "Slurm");
  EXPECT_EQ(launch.rank, 5);
  EXPECT_EQ(launch.size, 8);
  EXPECT_EQ(launch.local_rank, 1);
  EXPECT_EQ(launch.host, "n3");  // where rank 0 runs; srun itself may have been called elsewhere
  EXPECT_GE(launch.port, 12'000);
  EXPECT_LT(launch.port, 32'000);
  EXPECT_EQ(launch_with(with(kSrun, {{"SLURM_PROCID", "6"}, {"SLURM_LOCALID", "2"}})).port, launch.port);
  EXPECT_NE(launch_with(with(kSrun, {{"SLURM_STEP_ID", "1"}})).port, launch.port);
  const Launch given = launch_with(with(kSrun, {{"MASTER_ADDR", "n9"}, {"MASTER_PORT", "4242"}}));
  EXPECT_EQ(given.host, "n9");
  EXPECT_EQ(given.port, 4242);
  // A step of fewer tasks than the job, on some of its nodes.
  const Launch part = launch_with(with(kSrun, {{"SLURM_STEP_NUM_TASKS", "6"}, {"SLURM_STEP_NODELIST", "n4"}}));
  EXPECT_EQ(part.size, 6);
  EXPECT_EQ(part.host, "n4");
}

// A batch script is itself task 0 of no step of srun; a shell of salloc has no task at all.
TEST(ReadLaunch, FindsOneProcessInASlurmJobWithoutSrun) {
  EXPECT_EQ(launch_with(without(kSrun, "SLURM_STEP_ID")).size, 1);
  EXPECT_EQ(launch_with({{"SLURM_NTASKS", "8"}, {"SLURM_JOB_ID", "1"}, {"SLURM_NODELIST", "n[3-4]"}}).size, 1);
}

TEST(ReadLaunch, ReadsOpenMpi) {
  const Launch launch = launch_with(kOpenMpi);
  EXPECT_EQ(launch.launcher, "Open MPI");
  EXPECT_EQ(launch.rank, 1);
  EXPECT_EQ(launch.size, 4);
  EXPECT_EQ(launch.local_rank, 1);
  EXPECT_EQ(launch.host, "127.0.0.1");  // all ranks are on this host
  EXPECT_NE(launch_with(with(kOpenMpi, {{"PMIX_NAMESPACE", "4022534146"}})).port, launch.port);
  const Variables two_hosts = with(kOpenMpi, {{"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}});
  testing::expect_error(ErrorCode::kUsage, {"Open MPI", "MASTER_ADDR is not set"}, [&] { launch_with(two_hosts); });
  EXPECT_EQ(launch_with(with(two_hosts, {{"MASTER_ADDR", "n1"}})).host, "n1");
  EXPECT_EQ(launch_with(with(two_hosts, {{"SLURM_JOB_NODELIST", "n[5,8]"}})).host, "n5");
}

TEST(ReadLaunch, ReadsMpichAndIntelMpi) {
  const Launch launch = launch_with(with(kMpich, {{"MASTER_ADDR", "n1"}, {"MASTER_PORT", "4242"}}));
  EXPECT_EQ(launch.rank, 3);
  EXPECT_EQ(launch.size, 4);
  EXPECT_EQ(launch.local_rank, 1);
  EXPECT_EQ(launch.host, "n1");
  EXPECT_EQ(launch.port, 4242);
  const Variables one_host = with(kMpich, {{"MPI_LOCALNRANKS", "4"}});
  testing::expect_error(ErrorCode::kUsage, {"MASTER_PORT is not set"}, [&] { launch_with(one_host); });
  EXPECT_EQ(launch_with(with(one_host, {{"MASTER_PORT", "4242"}})).host, "127.0.0.1");
}

TEST(ReadLaunch, TakesTheInnermostLauncher) {
  EXPECT_EQ(launch_with(with(kSrun, kTorchrun)).launcher, "torchrun");
  EXPECT_EQ(launch_with(with(kSrun, kOpenMpi)).launcher, "Open MPI");
  EXPECT_EQ(launch_with(with(kSrun, {{"PMI_RANK", "5"}, {"PMI_SIZE", "8"}})).launcher, "Slurm");  // srun --mpi=pmi2
  EXPECT_EQ(launch_with(with(kSrun, kMpich)).launcher, "MPICH or Intel MPI");
}

TEST(ReadLaunch, NamesWhatIsMissing) {
  for (const char* name : {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}) {
    testing::expect_error(ErrorCode::kUsage, {"torchrun", name, "is not set"},
                          [&] { launch_with(without(kTorchrun, name)); });
  }
  testing::expect_error(ErrorCode::kUsage, {"Slurm", "SLURM_LOCALID is not set"},
                        [&] { launch_with(without(kSrun, "SLURM_LOCALID")); });
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"}) {
    testing::expect_error(ErrorCode::kUsage, {"Open MPI", name, "is not set"},
                          [&] { launch_with(without(kOpenMpi, name)); });
  }
  testing::expect_error(ErrorCode::kUsage, {"PMI_SIZE is not set"}, [&] { launch_with(without(kMpich, "PMI_SIZE")); });
}

TEST(ReadLaunch, RefusesContradictions) {
  const auto refused = [](std::initializer_list<const char*> parts, const Variables& variables) {
    testing::expect_error(ErrorCode::kUsage, parts, [&] { launch_with(variables); });
  };
  refused({"RANK=8", "WORLD_SIZE=8", "contradict"}, with(kTorchrun, {{"RANK", "8"}}));
  refused({"LOCAL_RANK=6", "contradict"}, with(kTorchrun, {{"LOCAL_RANK", "6"}}));
  refused({"RANK is '-1'", "wanted a whole number from 0"}, with(kTorchrun, {{"RANK", "-1"}}));
  refused({"WORLD_SIZE is '8x'"}, with(kTorchrun, {{"WORLD_SIZE", "8x"}}));
  refused({"MASTER_PORT is '99999'", "1 to 65535"}, with(kTorchrun, {{"MASTER_PORT", "99999"}}));
  refused({"SLURM_PROCID=9", "SLURM_STEP_NUM_TASKS=8"}, with(kSrun, {{"SLURM_PROCID", "9"}}));
  refused({"'n[3-'", "no list of nodes", "MASTER_ADDR"}, with(kSrun, {{"SLURM_STEP_NODELIST", "n[3-"}}));
}

TEST(ExpandNodeList, GivesEveryHost) {
  EXPECT_THAT(expand_node_list("a"), ElementsAre("a"));
  EXPECT_THAT(expand_node_list("a,b-1.x"), ElementsAre("a", "b-1.x"));
  EXPECT_THAT(expand_node_list("a[1-3,07-09],b"), ElementsAre("a1", "a2", "a3", "a07", "a08", "a09", "b"));
  EXPECT_THAT(expand_node_list("n[9-11]x,c[5]"), ElementsAre("n9x", "n10x", "n11x", "c5"));
  EXPECT_THAT(expand_node_list("n[098-101]"), ElementsAre("n098", "n099", "n100", "n101"));
  EXPECT_THAT(expand_node_list("r[1-2]n[3,5]"), ElementsAre("r1n3", "r1n5", "r2n3", "r2n5"));
}

TEST(ExpandNodeList, RefusesWhatIsNoList) {
  for (const char* list : {"", "a,", "a[", "a]", "a[]", "a[1-]", "a[3-1]", "a[1-999999999]", "a[x]", "a[[1]]",
                           "a[1-2]b[", "n[1-60000]m[1-2]"}) {
    SCOPED_TRACE(list);
    testing::expect_error(ErrorCode::kUsage, {"no list of nodes"}, [&] { (void)expand_node_list(list); });
  }
}

}  // namespace
}  // namespace coppice::launch
