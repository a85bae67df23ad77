//! Timers that send signals: `setitimer(2)` and `timer_create(2)`.

use super::{Answers, Result, words};
use crate::restore::Home;
use vrun_image::state::{IntervalTimer, Process};
use vrun_shim::Script;

pub(super) struct Questions {
    interval_timers: [u64; 3],
}

pub(super) fn ask(script: &mut Script) -> Questions {
    let interval_timers = [0, 1, 2].map(|which| {
        let timer = script.reserve(32);
        script.call("ask for an interval timer", libc::SYS_getitimer, &[which, timer]);
        timer
    });
    Questions { interval_timers }
}

impl Questions {
    pub(super) fn read(self, answers: &Answers<'_>) -> Result<[IntervalTimer; 3]> {
        let mut timers = [IntervalTimer::default(); 3];
        for (timer, address) in timers.iter_mut().zip(self.interval_timers) {
            let [interval, interval_micros, value, value_micros] = answers.words(address)?;
            timer.interval = interval * 1_000_000 + interval_micros;
            timer.value = value * 1_000_000 + value_micros;
        }
        Ok(timers)
    }
}

pub(super) fn steps(script: &mut Script, process: &Process, home: Home) {
    if !matches!(home, Home::Here { .. }) {
        return; // the deputy kept the timers
    }
    let timers = process.signals.interval_timers.iter().enumerate();
    for (which, timer) in timers.filter(|(_, timer)| timer.value != 0) {
        let value = [timer.interval, timer.value].map(|micros| [micros / 1_000_000, micros % 1_000_000]);
        let arguments = [which as u64, script.data(&words(value.as_flattened())), 0];
        let what = format_args!("set interval timer {which}");
        script.call(what, libc::SYS_setitimer, &arguments);
    }
}
