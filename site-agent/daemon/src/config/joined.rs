//! What is said in several places, as one.

use super::Overrides;

impl Overrides {
    /// What `later` says where it says anything, else what this says. Labels are joined.
    pub(super) fn with(mut self, later: Self) -> Self {
        self.labels.extend(later.labels);
        Self {
            data_dir: later.data_dir.or(self.data_dir),
            work_dir: later.work_dir.or(self.work_dir),
            cpus: later.cpus.or(self.cpus),
            memory: later.memory.or(self.memory),
            labels: self.labels,
            policy: later.policy.or(self.policy),
            imports: later.imports.or(self.imports),
            import_urls: later.import_urls.or(self.import_urls),
            exports: later.exports.or(self.exports),
            journal: later.journal.or(self.journal),
            metrics_listen: later.metrics_listen.or(self.metrics_listen),
            direct_listen: later.direct_listen.or(self.direct_listen),
            direct_addresses: later.direct_addresses.or(self.direct_addresses),
            direct_to: later.direct_to.or(self.direct_to),
            direct_rate: later.direct_rate.or(self.direct_rate),
            evict_idle_seconds: later.evict_idle_seconds.or(self.evict_idle_seconds),
            scrub_days: later.scrub_days.or(self.scrub_days),
            scrub_rate: later.scrub_rate.or(self.scrub_rate),
            scrub_hours: later.scrub_hours.or(self.scrub_hours),
            otlp: later.otlp.or(self.otlp),
            otlp_ca_file: later.otlp_ca_file.or(self.otlp_ca_file),
            closed: later.closed.or(self.closed),
            server: later.server.or(self.server),
            stop_work_on_exit: later.stop_work_on_exit.or(self.stop_work_on_exit),
            python: later.python.or(self.python),
            container: later.container.or(self.container),
            shim_program: later.shim_program.or(self.shim_program),
            executor: later.executor.or(self.executor),
            slurm: later.slurm.or(self.slurm),
            batch: later.batch.or(self.batch),
            isolation: later.isolation.or(self.isolation),
            gpus: later.gpus.or(self.gpus),
            resources: later.resources.or(self.resources),
            workers: later.workers.or(self.workers),
            accounts: later.accounts.or(self.accounts),
            kubernetes: later.kubernetes.or(self.kubernetes),
        }
    }
}
