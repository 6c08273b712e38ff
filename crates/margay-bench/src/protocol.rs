//! What stands between a number and belief in it: idle power, background load, charging, governors, heat.

use crate::{
    Plan,
    record::{Device, Protocol},
    watched::mean,
};
use margay_observe::{Clock, Root, Sampler, Sensors, Series, Watched, What, machine, tracks};
use std::time::Duration;

/// Background load above which a warning is given, in percent of all cores.
const MOST_BACKGROUND_PERCENT: f64 = 5.0;

/// When a round may begin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CoolDown {
    /// Once the hottest zone is at most so many degrees above where it was before the first run.
    pub within_celsius: f64,
    /// Or after so long.
    pub limit: Duration,
}

impl Default for CoolDown {
    fn default() -> Self {
        CoolDown { within_celsius: 2.0, limit: Duration::from_secs(60) }
    }
}

/// Time between looks at a thermometer.
const LOOK: Duration = Duration::from_millis(500);

/// What the machine says of itself.
pub(crate) fn device(root: &Root) -> Device {
    let kind = |kind: &machine::CoreKind| {
        let clock = kind.max_khz.map(|khz| format!(" up to {:.2} GHz", khz as f64 / 1e6)).unwrap_or_default();
        format!("{} cores{clock}", kind.cores.len())
    };
    Device {
        cpu: machine::cpu_name(root),
        physical_cores: machine::physical_cores(root),
        logical_cores: machine::logical_cores(root),
        core_kinds: machine::core_kinds(root).iter().map(kind).collect(),
        memory_bytes: machine::memory(root).map(|memory| memory.total_bytes),
        kernel: machine::kernel(root),
        governors: machine::governors(root),
        battery_watt_hours: machine::battery_watt_hours(root),
    }
}

/// Watches the machine while nothing is asked.
pub(crate) fn idle(plan: &Plan<'_>, root: &Root) -> Series {
    let what = What { process: Watched::None, threads: false };
    let Ok(sampler) = Sampler::start(root.clone(), Clock::start(), plan.period, what) else {
        return Series::new(plan.period);
    };
    let clock = Clock::start();
    while clock.now() < plan.idle && !plan.stop.is_cancelled() {
        std::thread::sleep(plan.idle.saturating_sub(clock.now()).min(Duration::from_millis(50)));
    }
    sampler.stop()
}

/// What is known before the first run.
pub(crate) fn before(plan: &Plan<'_>, device: &Device, idle: &Series) -> Protocol {
    let tracks = tracks(idle);
    let power = tracks.iter().find(|track| track.key == "power_watts");
    let samples = &idle.samples;
    let idle_cpu_percent = mean(samples, |sample| sample.cpu_percent);
    let mut warnings = Vec::new();
    let background = idle_cpu_percent.zip(device.logical_cores).map(|(cpu, cores)| cpu / cores.max(1) as f64);
    if let Some(percent) = background.filter(|percent| *percent > MOST_BACKGROUND_PERCENT) {
        warnings.push(format!("other work took {percent:.0} % of all cores before the first run"));
    }
    if samples.iter().any(|sample| sample.charging == Some(true)) {
        warnings.push(
            "a charger is connected: heat and limits are not those of use, energy is unknown".to_owned(),
        );
    }
    if !device.governors.is_empty() && device.governors != ["performance"] {
        let names = device.governors.join(", ");
        warnings
            .push(format!("clock rates are chosen by {names}, not by performance: short runs may be slower"));
    }
    if cfg!(debug_assertions) {
        warnings
            .push("this is a build for development: kernels are optimised in it, the rest is not".to_owned());
    }
    Protocol {
        repeat: plan.repeat,
        warmup: plan.warmup,
        period_ms: plan.period.as_secs_f64() * 1e3,
        idle_seconds: plan.idle.as_secs_f64(),
        idle_watts: idle.mean_watts(),
        idle_cpu_percent,
        power_source: idle.channels.power.map(|id| match &idle.channels.power_scope {
            Some(scope) => format!("{id} ({scope})"),
            None => id.to_owned(),
        }),
        power_unknown: power.and_then(|power| power.why.clone()),
        start_celsius: samples.iter().filter_map(|sample| sample.temperature_celsius).next_back(),
        cool_down: String::new(),
        cooled_seconds: 0.0,
        warnings,
    }
}

/// Waits between rounds.
pub(crate) struct Cooler {
    rule: CoolDown,
    /// Temperature to come down to; `None` without a thermometer.
    below: Option<f64>,
    sensors: Sensors,
    clock: Clock,
    waited: Duration,
    late: usize,
}

impl Cooler {
    pub(crate) fn new(root: &Root, rule: CoolDown, start_celsius: Option<f64>) -> Self {
        let what = What { process: Watched::None, threads: false };
        Cooler {
            rule,
            below: start_celsius.map(|start| start + rule.within_celsius),
            sensors: Sensors::probe(root, &what),
            clock: Clock::start(),
            waited: Duration::ZERO,
            late: 0,
        }
    }

    /// Waits until it is cool enough, the limit is reached or `stop` says so.
    pub(crate) fn wait(&mut self, root: &Root, stop: impl Fn() -> bool) {
        let Some(below) = self.below else { return };
        let began = self.clock.now();
        loop {
            let now = self.clock.now();
            let celsius = self.sensors.sample(root, now).temperature_celsius;
            if stop() || celsius.is_none_or(|celsius| celsius <= below) {
                break;
            }
            if now.saturating_sub(began) >= self.rule.limit {
                self.late += 1;
                break;
            }
            std::thread::sleep(LOOK.min(self.rule.limit));
        }
        self.waited += self.clock.now().saturating_sub(began);
    }

    /// What came of it, in words, and the seconds waited.
    pub(crate) fn told(&self) -> (String, f64) {
        let waited = self.waited.as_secs_f64();
        let Some(below) = self.below else {
            return ("skipped: no thermometer can be read here".to_owned(), 0.0);
        };
        let limit = self.rule.limit.as_secs_f64();
        let mut told = format!(
            "each round waits until the hottest zone is at {below:.1} °C or below, {limit:.0} s at most"
        );
        if self.late > 0 {
            told += &format!("; {} of them began hotter", self.late);
        }
        (told, waited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(folder: &std::path::Path, millis: &str) {
        let zone = folder.join("sys/class/thermal/thermal_zone0");
        std::fs::create_dir_all(&zone).unwrap();
        std::fs::write(zone.join("type"), "cpu-0-0\n").unwrap();
        std::fs::write(zone.join("temp"), millis).unwrap();
    }

    #[test]
    fn a_hot_machine_is_waited_for_and_no_longer_than_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        zone(folder.path(), "60000\n");
        let root = Root::new(folder.path());
        let rule = CoolDown { within_celsius: 2.0, limit: Duration::from_millis(30) };
        let mut cooler = Cooler::new(&root, rule, Some(40.0));
        cooler.wait(&root, || false);
        let (told, seconds) = cooler.told();
        assert!(
            told.contains("42.0") && told.contains("1 of them began hotter") && seconds >= 0.03,
            "{told} {seconds}"
        );
        zone(folder.path(), "41000\n");
        let mut cooler = Cooler::new(&root, rule, Some(40.0));
        cooler.wait(&root, || false);
        assert!(!cooler.told().0.contains("hotter"));
        assert!(Cooler::new(&root, rule, None).told().0.starts_with("skipped"));
    }

    #[test]
    fn warnings_name_what_disturbs() {
        let load = || margay::Model::nano();
        let plan = Plan::new(&load, "x");
        let device =
            Device { logical_cores: Some(2), governors: vec!["powersave".to_owned()], ..Device::default() };
        let mut series = Series::new(Duration::from_millis(100));
        let over = Duration::from_millis(100);
        series.samples = vec![margay_observe::Sample {
            over,
            cpu_percent: Some(60.0),
            charging: Some(true),
            ..margay_observe::Sample::default()
        }];
        let protocol = before(&plan, &device, &series);
        let all = protocol.warnings.join("\n");
        for word in ["30 % of all cores", "charger", "powersave"] {
            assert!(all.contains(word), "{word}: {all}");
        }
        assert_eq!((protocol.idle_watts, protocol.start_celsius), (None, None));
        assert!(protocol.power_unknown.is_some());
        let calm = before(&plan, &Device::default(), &Series::new(over));
        assert_eq!(calm.warnings.len(), usize::from(cfg!(debug_assertions)), "{:?}", calm.warnings);
    }
}
