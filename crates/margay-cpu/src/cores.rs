//! Sets of cores, and keeping threads on them.

use std::str::FromStr;

/// Cores a set can name: what Linux's `cpu_set_t` holds.
const MOST: usize = 1024;

/// A set of cores by the numbers the system gives them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreSet {
    words: [u64; MOST / 64],
}

/// A list of cores that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CoreError {
    /// It is no list of cores.
    #[error("{0:?} is no list of cores such as 0-3,6 with numbers up to 1023")]
    List(String),
    /// Some of them are not there, or this process may not use them.
    #[error("this process may use the cores {allowed}, not {refused}")]
    NotHere {
        /// The list of those that cannot be used.
        refused: String,
        /// The list of those that can.
        allowed: String,
    },
    /// The system does not let programs choose.
    #[error("this system does not let a program choose its cores")]
    NoChoice,
}

impl CoreSet {
    /// How many they are.
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// True where there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Their numbers, in order.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        (0..MOST).filter(|core| self.words[core / 64] >> (core % 64) & 1 == 1)
    }

    /// Refuses what this process may not use.
    ///
    /// # Errors
    /// [`CoreError::NotHere`], or [`CoreError::NoChoice`] where the system has no such thing.
    pub fn check(&self) -> Result<(), CoreError> {
        let allowed = Self::allowed().ok_or(CoreError::NoChoice)?;
        let mut refused = *self;
        for (refused, allowed) in refused.words.iter_mut().zip(allowed.words) {
            *refused &= !allowed;
        }
        if refused.is_empty() {
            return Ok(());
        }
        Err(CoreError::NotHere { refused: refused.to_string(), allowed: allowed.to_string() })
    }

    /// The cores that the calling thread may use; `None` where the system does not say.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub fn allowed() -> Option<CoreSet> {
        let mut set = CoreSet::default();
        let bytes = size_of_val(&set.words);
        // SAFETY: the system writes at most that many bytes there; any bits are a value.
        let status = unsafe { libc::sched_getaffinity(0, bytes, set.words.as_mut_ptr().cast()) };
        (status == 0).then_some(set)
    }

    /// The cores that the calling thread may use; `None` where the system does not say.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub fn allowed() -> Option<CoreSet> {
        None
    }

    /// Keeps the calling thread on these cores; false where the system refuses.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(crate) fn confine(&self) -> bool {
        // SAFETY: the system reads that many bytes.
        unsafe { libc::sched_setaffinity(0, size_of_val(&self.words), self.words.as_ptr().cast()) == 0 }
    }

    /// Keeps the calling thread on these cores; false where the system refuses.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub(crate) fn confine(&self) -> bool {
        false
    }
}

impl FromStr for CoreSet {
    type Err = CoreError;

    /// Reads numbers and ranges between commas: `0-3,6`.
    fn from_str(list: &str) -> Result<Self, CoreError> {
        let wrong = || CoreError::List(list.to_owned());
        let number =
            |text: &str| text.trim().parse::<usize>().ok().filter(|core| *core < MOST).ok_or_else(wrong);
        let mut set = CoreSet::default();
        for part in list.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(wrong());
            }
            (first..=last).for_each(|core| set.words[core / 64] |= 1 << (core % 64));
        }
        Ok(set)
    }
}

impl std::fmt::Display for CoreSet {
    /// The shortest list that reads back as the same set.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cores: Vec<usize> = self.iter().collect();
        for (at, run) in cores.chunk_by(|a, b| a + 1 == *b).enumerate() {
            let comma = if at > 0 { "," } else { "" };
            match run {
                [one] => write!(f, "{comma}{one}")?,
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_round_trip_and_nonsense_is_refused() {
        for (list, len, shown) in
            [("0", 1, "0"), ("0-3,6", 5, "0-3,6"), ("6, 0-1 ,2", 4, "0-2,6"), ("1023,63-64", 3, "63-64,1023")]
        {
            let set: CoreSet = list.parse().unwrap();
            assert_eq!((set.len(), set.to_string().as_str()), (len, shown), "{list}");
        }
        for list in ["", ",", "a", "3-1", "0-", "-1", "1024", "0-99999999999999999999"] {
            assert_eq!(list.parse::<CoreSet>(), Err(CoreError::List(list.to_owned())));
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_thread_stays_on_its_cores_and_others_are_refused() {
        let allowed = CoreSet::allowed().unwrap();
        let last: CoreSet = allowed.iter().last().unwrap().to_string().parse().unwrap();
        assert_eq!(last.check(), Ok(()));
        let confined = std::thread::spawn(move || last.confine().then(CoreSet::allowed).flatten());
        assert_eq!(confined.join().unwrap(), Some(last));
        assert_eq!(CoreSet::allowed(), Some(allowed), "only that thread was confined");
        let beyond: CoreSet = "1023".parse().unwrap();
        if beyond != last {
            assert_eq!(
                beyond.check(),
                Err(CoreError::NotHere { refused: "1023".to_owned(), allowed: allowed.to_string() })
            );
        }
    }
}
