//! Steps that take several nodes of a real Slurm cluster, and say more to `sbatch`.

use std::process::Command;

use anyhow::Result;
use e2e_tests::{Output, SlurmCluster};

use crate::slurm::site_on;

#[test]
fn a_step_takes_several_nodes_and_starts_what_is_parallel_itself() -> Result<()> {
    let Some(slurm) = SlurmCluster::start_of("c1", 7, 2)? else { return Ok(()) };
    let cluster = site_on(&slurm, "")?;
    let workflow = r#"workflow: spread
steps:
  spread:
    foreach: ${{ range(2) }}
    resources: { nodes: 2, tasks_per_node: 2, cpu: 3, memory: 128MiB, time: 2m }
    run: |
      echo "$SLURM_NNODES $SLURM_NTASKS $SLURM_CPUS_ON_NODE $SLURM_MEM_PER_NODE" > "$ATOLL_OUTPUTS/asked"
      srun sh -c 'echo "$SLURMD_NODENAME" > "task-$SLURM_PROCID"'
      cat task-* | sort | uniq -c | tr -s ' \n' ' ' > "$ATOLL_OUTPUTS/tasks"
      echo started >> "$ATOLL_OUTPUTS/starts"
    outputs: { asked: string, tasks: string, starts: string }
outputs:
  asked: ${{ steps.spread.outputs.asked }}
  tasks: ${{ steps.spread.outputs.tasks }}
  starts: ${{ steps.spread.outputs.starts }}
"#;
    let shown = cluster.run(workflow, &[])?;
    assert_eq!(shown["state"], "succeeded", "{:#}\n{}", shown["error"], cluster.log("hpc"));
    assert_eq!(shown["outputs"]["asked"], serde_json::json!(["2 4 6 144", "2 4 6 144"]));
    let tasks = shown["outputs"]["tasks"][0].as_str().unwrap_or_default().trim();
    assert_eq!(tasks, "2 c1 2 c1-2", "{shown:#}");
    assert_eq!(shown["outputs"]["starts"], serde_json::json!(["started", "started"]));
    Ok(())
}

#[test]
fn what_is_launched_runs_as_all_tasks_and_has_one_outcome() -> Result<()> {
    let Some(slurm) = SlurmCluster::start_of("c1", 9, 2)? else { return Ok(()) };
    let cluster = site_on(&slurm, "")?;
    let workflow = |script: &str| {
        format!(
            "workflow: launched\nsteps:\n  make:\n    run: echo 20 > \"$ATOLL_OUTPUTS/base\"\n    outputs: {{ base: file }}\n  \
             all:\n    with: {{ base: \"${{{{ steps.make.outputs.base }}}}\" }}\n    \
             resources: {{ nodes: 2, tasks_per_node: 2, memory: 256MiB, launch: srun }}\n    run: |\n      {script}\n    outputs: {{ parts: directory }}\n  \
             sum:\n    with: {{ parts: \"${{{{ steps.all.outputs.parts }}}}\" }}\n    \
             run: cat \"$parts\"/* | awk '{{ n += $1; seen[$2] = 1 }} END {{ for (s in seen) k++; print n, k }}' > \"$ATOLL_OUTPUTS/sum\"\n    \
             outputs: {{ sum: string }}\noutputs:\n  sum: ${{{{ steps.sum.outputs.sum }}}}\n"
        )
    };
    // Inputs and outputs are seen by all of them: 4 × 20, and the numbers of the tasks.
    let script = "mkdir -p \"$ATOLL_OUTPUTS/parts\"; echo task $SLURM_PROCID; \
                  echo $(($(cat \"$base\") + SLURM_PROCID)) $SLURMD_NODENAME > \"$ATOLL_OUTPUTS/parts/$SLURM_PROCID\"";
    let shown = cluster.run(&workflow(script), &[])?;
    assert_eq!(shown["state"], "succeeded", "{:#}\n{}", shown["error"], cluster.log("hpc"));
    assert_eq!(shown["outputs"]["sum"], "86 2");
    let logs = cluster.call(&["logs", shown["run"].as_str().unwrap_or_default()])?;
    assert!((0..4).all(|task| logs.stdout.contains(&format!("task {task}"))), "{}", logs.stdout);
    let failed = cluster.run(&workflow("exit $((SLURM_PROCID * 3))"), &[])?;
    assert_eq!(failed["state"], "failed", "{failed:#}");
    let executions = failed["executions"].as_array().cloned().unwrap_or_default();
    let codes: Vec<i64> = executions.iter().filter_map(|execution| execution["exit_code"].as_i64()).collect();
    assert!(codes.contains(&9), "the worst of 0, 3, 6 and 9: {failed:#}");
    let late = workflow("sleep 300").replace("memory: 256MiB", "time: 2s");
    let late = cluster.run(&late, &[])?;
    let error = late["error"]["message"].as_str().unwrap_or_default();
    assert!(error.contains("time limit"), "{late:#}");
    cluster.eventually("its tasks to be gone with its job", || Ok(slurm.queue()?.is_empty()))?;
    Ok(())
}

#[test]
fn what_a_step_says_to_sbatch_reaches_the_cluster_and_a_site_without_one_is_none_for_it() -> Result<()> {
    let Some(slurm) = SlurmCluster::start("c1", 10)? else { return Ok(()) };
    let cluster = site_on(&slurm, "options = [\"--nice=7\"]")?;
    let workflow = |sbatch: &str| {
        format!(
            "workflow: said\nsteps:\n  a:\n    resources: {{ sbatch: {sbatch} }}\n    run: |\n      \
             scontrol show job $SLURM_JOB_ID | grep -E -o '(OverSubscribe|Nice)=[^ ]*' | sort | tr '\\n' ' ' > \"$ATOLL_OUTPUTS/said\"\n    \
             outputs: {{ said: string }}\noutputs:\n  said: ${{{{ steps.a.outputs.said }}}}\n"
        )
    };
    let shown = cluster.run(&workflow("[--exclusive, --nice=3]"), &[])?;
    assert_eq!(shown["state"], "succeeded", "{:#}\n{}", shown["error"], cluster.log("hpc"));
    // Of two that say the same that of the site counts.
    assert_eq!(shown["outputs"]["said"].as_str().map(str::trim), Some("Nice=7 OverSubscribe=NO"));
    Ok(())
}

#[test]
fn an_mpi_program_runs_on_all_nodes_of_a_step() -> Result<()> {
    let has_mpi =
        Output::of(Command::new("sh").args(["-c", "command -v mpirun && /usr/bin/python3 -c 'import mpi4py'"]))?;
    if has_mpi.code != 0 {
        eprintln!("SKIPPED: no MPI, or no mpi4py; tests/run.sh installs them");
        assert!(std::env::var_os("CI").is_none(), "CI has them");
        return Ok(());
    }
    let Some(slurm) = SlurmCluster::start_of("c1", 18, 2)? else { return Ok(()) };
    let cluster = site_on(&slurm, "")?;
    // Both nodes are this machine, which MPI has to be told not to take for shared memory.
    let workflow = r#"workflow: mpi
steps:
  sum:
    resources: { nodes: 2, tasks_per_node: 2, time: 2m }
    env: { OMPI_MCA_btl: "tcp,self", OMPI_MCA_pml: ob1, OMPI_ALLOW_RUN_AS_ROOT: "1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: "1" }
    run: |
      cat > sum.py <<END
      from mpi4py import MPI
      import os
      world = MPI.COMM_WORLD
      nodes = world.gather(os.environ["SLURMD_NODENAME"])
      total = world.allreduce(world.Get_rank() + 1)
      if world.Get_rank() == 0:
          with open(os.environ["ATOLL_OUTPUTS"] + "/sum", "w") as said:
              said.write(f"{world.Get_size()} tasks on {sorted(set(nodes))} make {total}")
      END
      TMPDIR=/tmp mpirun /usr/bin/python3 sum.py
    outputs: { sum: string }
outputs:
  sum: ${{ steps.sum.outputs.sum }}
"#;
    let shown = cluster.run(workflow, &[])?;
    let logs = cluster.call(&["logs", shown["run"].as_str().unwrap_or_default()])?;
    assert_eq!(shown["state"], "succeeded", "{:#}\n{}", shown["error"], logs.stdout);
    assert_eq!(shown["outputs"]["sum"], "4 tasks on ['c1', 'c1-2'] make 10");
    Ok(())
}
