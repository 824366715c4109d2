//! Sites whose executions are jobs of a real Slurm cluster: arrays, limits, exit codes, cancellation, what is left.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use e2e_tests::{Cluster, Options, SlurmCluster};
use serde_json::Value;

/// A site `hpc` whose jobs go to this cluster, with these further lines of `[slurm]`.
pub(crate) fn site_on(slurm: &SlurmCluster, settings: &str) -> Result<Cluster> {
    let config = slurm.agent_config(settings)?.display().to_string();
    let site_arguments = BTreeMap::from([("hpc", vec!["--config".to_owned(), config])]);
    Cluster::start(Options { sites: vec!["hpc"], site_arguments, ..Options::default() })
}

/// How often each line stands in a file that the processes of a run append to.
pub(crate) fn effects(path: &Path) -> Result<BTreeMap<String, usize>> {
    let mut seen = BTreeMap::new();
    for line in std::fs::read_to_string(path)?.lines() {
        *seen.entry(line.to_owned()).or_default() += 1;
    }
    Ok(seen)
}

fn error_of(shown: &Value) -> String {
    shown["error"]["message"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_fan_out_over_two_clusters_is_an_array_at_each() -> Result<()> {
    let (Some(one), Some(other)) = (SlurmCluster::start("c1", 1)?, SlurmCluster::start("c2", 2)?) else {
        return Ok(());
    };
    let mut site_arguments = BTreeMap::new();
    for (site, slurm) in [("one", &one), ("other", &other)] {
        let config = slurm.agent_config("")?.display().to_string();
        site_arguments.insert(site, vec!["--config".to_owned(), config]);
    }
    let cluster = Cluster::start(Options { sites: vec!["one", "other"], site_arguments, ..Options::default() })?;
    let effects_path = cluster.directory().join("effects");
    std::fs::write(&effects_path, "")?;
    let workflow = format!(
        r#"workflow: two-clusters
steps:
  square:
    site: one
    foreach: ${{{{ range(200) }}}}
    with: {{ number: "${{{{ item }}}}" }}
    resources: {{ cpu: 0.5, memory: 32MiB }}
    run: |
      echo "$number in $SLURM_CLUSTER_NAME" >> {effects}
      echo $((number * number)) > "$ATOLL_OUTPUTS/square"
    outputs: {{ square: file }}
  sum:
    site: other
    with: {{ squares: "${{{{ steps.square.outputs.square }}}}" }}
    run: |
      test "$SLURM_CLUSTER_NAME" = c2
      echo "$squares" | tr -d '[]"' | tr ',' '\n' | xargs cat | awk '{{ sum += $1 }} END {{ print sum }}' > "$ATOLL_OUTPUTS/sum"
    outputs: {{ sum: integer }}
outputs:
  sum: ${{{{ steps.sum.outputs.sum }}}}
"#,
        effects = effects_path.display()
    );
    let shown = cluster.run(&workflow, &[])?;
    assert_eq!(shown["state"], "succeeded", "{:#}\n{}", shown["error"], cluster.log("one"));
    assert_eq!(shown["outputs"]["sum"], 2_646_700);
    let effects = effects(&effects_path)?;
    let all: BTreeMap<String, usize> = (0..200).map(|number| (format!("{number} in c1"), 1)).collect();
    assert_eq!(effects, all, "each ran once, in its own cluster");
    // Elements of one array have one name; a fan-out that comes in several parts has as many.
    let ended = one.ended()?;
    let name_of =
        |line: &str| line.split(' ').find_map(|word| word.strip_prefix("Name=")).unwrap_or_default().to_owned();
    let names: std::collections::BTreeSet<String> = ended.iter().map(|line| name_of(line)).collect();
    assert_eq!(ended.len(), 200, "{ended:?}");
    assert!(names.len() <= 4, "{names:?}");
    assert!(names.iter().all(|name| name.starts_with("atoll.two-clusters.square.")), "{names:?}");
    Ok(())
}

#[test]
fn how_a_job_ends_is_told_as_of_every_process() -> Result<()> {
    let Some(slurm) = SlurmCluster::start("c1", 3)? else { return Ok(()) };
    let cluster = site_on(&slurm, "")?;
    let fails = |name: &str, resources: &str, run: &str| {
        let text = format!("workflow: {name}\nsteps:\n  a:\n    resources: {resources}\n    run: |\n      {run}\n");
        cluster.run(&text, &[])
    };
    let coded = fails("coded", "{ cpu: 1 }", "echo before; exit 7")?;
    assert_eq!((coded["state"].as_str(), coded["executions"][0]["exit_code"].as_i64()), (Some("failed"), Some(7)));
    let logs = cluster.call(&["logs", coded["run"].as_str().unwrap()])?;
    assert_eq!(logs.stdout.trim(), "before");
    let signalled = fails("signalled", "{ cpu: 1 }", "kill -9 $$")?;
    assert!(error_of(&signalled).contains("signal 9"), "{signalled:#}");
    let late = fails("late", "{ time: 1s }", "sleep 100")?;
    assert!(error_of(&late).contains("time limit"), "{late:#}");
    let hungry = fails("hungry", "{ memory: 48MiB }", "head -c 300M /dev/zero | tail")?;
    assert!(error_of(&hungry).contains("more memory"), "{hungry:#}");
    let huge = fails("huge", "{ memory: 90GiB }", "true")?;
    let error = error_of(&huge);
    assert!(error.contains("Slurm does not take the job in the default partition"), "{huge:#}");
    assert!(error.contains("Requested node configuration is not available"), "{huge:#}");
    Ok(())
}

#[test]
fn jobs_that_run_and_jobs_that_wait_are_cancelled() -> Result<()> {
    let Some(slurm) = SlurmCluster::start("c1", 4)? else { return Ok(()) };
    let cluster = site_on(&slurm, "")?;
    let mark = cluster.directory().join("mark");
    // The node has 16 CPUs: one runs, the others wait.
    let workflow = format!(
        "workflow: long\nsteps:\n  long:\n    foreach: ${{{{ range(3) }}}}\n    resources: {{ cpu: 16 }}\n    run: |\n      echo x >> {}\n      setsid sleep 600 &\n      sleep 600\n",
        mark.display()
    );
    let run = cluster.submit(&workflow, &[])?;
    cluster.eventually("one to run and two to wait", || {
        let queue = slurm.queue()?;
        let count = |state: &str| queue.iter().filter(|known| *known == state).count();
        Ok(mark.exists() && (count("RUNNING"), count("PENDING")) == (1, 2))
    })?;
    cluster.eventually("what the others wait for to be told", || {
        let executions = cluster.show(&run)?["executions"].as_array().cloned().unwrap_or_default();
        let why = executions.iter().filter_map(|execution| execution["waiting_for"].as_str());
        Ok(why
            .filter(|why| why.contains("is PENDING (Resources) in partition main") || why.contains("Priority"))
            .count()
            == 2)
    })?;
    cluster.call(&["cancel", &run.id])?;
    let shown = cluster.wait_for_end(&run)?;
    assert_eq!(shown["state"], "cancelled", "{shown:#}");
    cluster.eventually("the queue to be empty", || Ok(slurm.queue()?.is_empty()))?;
    assert_eq!(std::fs::read_to_string(&mark)?, "x\n", "those that waited did not begin");
    let jobs = cluster.site("hpc").directory.join("jobs");
    cluster.eventually("nothing to be left of them", || {
        let left = |folder: &str| std::fs::read_dir(jobs.join(folder)).map(Iterator::count);
        Ok(left("")? == 3 && left("batches")? == 0 && left("news")? == 0)
    })?;
    Ok(())
}

#[test]
fn what_an_administrator_says_of_jobs_reaches_the_cluster() -> Result<()> {
    let Some(slurm) = SlurmCluster::start("c1", 5)? else { return Ok(()) };
    let cluster = site_on(&slurm, "partition = \"small\"\njobs_max = 2\noptions = [\"--nice=7\", \"--mem=20M\"]\n")?;
    let workflow = "workflow: said\nsteps:\n  a:\n    foreach: ${{ range(5) }}\n    run: |\n      echo \"$SLURM_JOB_PARTITION $(scontrol show job $SLURM_JOB_ID | grep -m 1 -o 'Nice=7')\" > \"$ATOLL_OUTPUTS/said\"\n    outputs: { said: string }\noutputs:\n  said: ${{ steps.a.outputs.said }}\n";
    let shown = cluster.run(workflow, &[])?;
    assert_eq!(shown["state"], "succeeded", "{:#}", shown["error"]);
    assert_eq!(shown["outputs"]["said"], serde_json::json!(vec!["small Nice=7"; 5]));
    Ok(())
}

#[test]
fn an_action_in_python_is_called_in_jobs() -> Result<()> {
    let Some(slurm) = SlurmCluster::start("c1", 6)? else { return Ok(()) };
    let cluster = site_on(&slurm, "")?;
    let folder = cluster.directory().join("squares");
    std::fs::create_dir(&folder)?;
    std::fs::write(
        folder.join("action.yaml"),
        "name: squares\nversion: '1'\nruntime: python\nhandler: main.py:handle\ninputs: { number: integer }\n\
         outputs: { square: integer, note: file, job: string }\n",
    )?;
    std::fs::write(
        folder.join("main.py"),
        "import os\n\ndef handle(number):\n    print('squares', number)\n    if number == 3:\n        raise ValueError('no three')\n    \
         open('note', 'w').write(str(number))\n    \
         return {'square': number * number, 'note': 'note', 'job': os.environ['SLURM_JOB_ID']}\n",
    )?;
    let workflow = |numbers: &str| {
        format!(
            "workflow: squares\nsteps:\n  a: {{ action: ./squares, foreach: '${{{{ {numbers} }}}}', with: {{ number: '${{{{ item }}}}' }} }}\n\
             outputs: {{ squares: '${{{{ steps.a.outputs.square }}}}', jobs: '${{{{ steps.a.outputs.job }}}}' }}\n"
        )
    };
    let shown = cluster.run(&workflow("range(3)"), &[])?;
    assert_eq!(shown["state"], "succeeded", "{:#}\n{}", shown["error"], cluster.log("hpc"));
    assert_eq!(shown["outputs"]["squares"], serde_json::json!([0, 1, 4]));
    let jobs = shown["outputs"]["jobs"].as_array().map(Vec::len);
    assert!(jobs == Some(3) && !shown["outputs"]["jobs"][0].as_str().unwrap_or_default().is_empty(), "{shown:#}");
    let failed = cluster.run(&workflow("[3]"), &[])?;
    assert!(error_of(&failed).contains("ValueError: no three"), "{failed:#}");
    Ok(())
}
