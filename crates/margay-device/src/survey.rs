//! Trials at random ambient temperatures, on random devices and engines.

use crate::{Device, DeviceError, Engine, Firmware, Random, Strategy, Trial, TrialRun, Workload};

/// What is drawn from.
#[derive(Clone, Debug)]
pub struct Survey<'a> {
    /// Ids of devices.
    pub devices: &'a [&'a str],
    /// Ids of engines.
    pub engines: &'a [&'a str],
    /// Air, degrees Celsius.
    pub ambient_celsius: std::ops::Range<f64>,
    /// The same seed draws the same trials.
    pub seed: u64,
}

/// A trial that was drawn, with its runs in the order of [`Strategy::ALL`].
#[derive(Clone, Debug, PartialEq)]
pub struct Surveyed {
    /// Id of the device.
    pub device: String,
    /// Id of the engine.
    pub engine: String,
    /// Air.
    pub ambient_celsius: f64,
    /// Without traces.
    pub runs: Vec<TrialRun>,
}

impl Surveyed {
    /// Answers of the governor for one of the race.
    pub fn gain(&self) -> f64 {
        let of =
            |strategy| self.runs.iter().find(|run| run.strategy == strategy).map_or(0.0, |run| run.answers);
        of(Strategy::Governor) / of(Strategy::Race).max(f64::MIN_POSITIVE)
    }

    /// Whether the device ever slowed the race, so that there was something to govern.
    pub fn hot(&self) -> bool {
        self.runs.iter().any(|run| run.strategy == Strategy::Race && run.seconds_throttled > 0.0)
    }
}

impl Survey<'_> {
    /// Draws `count` trials of `workload` and runs each; `change` sets what is not drawn. Engines that a device cannot run
    /// are drawn again.
    ///
    /// # Errors
    /// [`DeviceError`] of profiles that break their rules, and where no engine runs on any device.
    pub fn run(
        &self,
        count: usize,
        workload: &Workload,
        firmware: Firmware,
        change: &dyn Fn(&mut Trial<'_>),
    ) -> Result<Vec<Surveyed>, DeviceError> {
        let mut random = Random::new(self.seed);
        let mut all = vec![];
        let mut refused = 0;
        while all.len() < count && !self.devices.is_empty() && !self.engines.is_empty() {
            let id = self.devices[random.below(self.devices.len())];
            let engine_id = self.engines[random.below(self.engines.len())];
            let air = &self.ambient_celsius;
            let ambient_celsius = air.start + (air.end - air.start) * random.part();
            let (device, engine) = (Device::named(id)?, Engine::named(engine_id)?);
            let mut trial = Trial { ambient_celsius, firmware, ..Trial::new(&device, &engine, workload) };
            change(&mut trial);
            match Strategy::ALL.into_iter().map(|strategy| trial.run(strategy)).collect::<Result<Vec<_>, _>>()
            {
                Ok(mut runs) => {
                    runs.iter_mut().for_each(|run| run.trace = vec![]);
                    let (device, engine) = (id.to_owned(), engine_id.to_owned());
                    all.push(Surveyed { device, engine, ambient_celsius, runs });
                }
                Err(DeviceError::Placement { .. }) if refused < 100 * count => refused += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }
}
