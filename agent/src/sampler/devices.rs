//! What a cgroup did on each device, for the `io_devices` table, and the devices' names.
//!
//! A device whose counters stand still says nothing new, so a row is made when one of them has changed, and with each slow
//! reading. The number is the kernel's `major:minor`; the name is that of /sys/dev/block now.

use crate::accumulator::Device;
use crate::cgroup::parse::devices;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Names that are remembered; beyond it all are looked up anew.
const MAX_NAMES: usize = 1024;

#[derive(Default)]
pub struct Devices {
    names: HashMap<Arc<str>, Option<Arc<str>>>,
}

impl Devices {
    fn name(&mut self, number: &str) -> (Arc<str>, Option<Arc<str>>) {
        if let Some((number, name)) = self.names.get_key_value(number) {
            return (number.clone(), name.clone());
        }
        if self.names.len() >= MAX_NAMES {
            self.names.clear();
        }
        let link = std::fs::read_link(Path::new("/sys/dev/block").join(number)).ok();
        let name = link.and_then(|l| Some(l.file_name()?.to_str()?.into()));
        let number: Arc<str> = number.into();
        self.names.insert(number.clone(), name.clone());
        (number, name)
    }

    /// Appends the devices of io.stat's text that differ from `last`, or all; `last` is then as the text. The text was
    /// parsed before, so that an error here has been counted.
    pub fn changed(&mut self, text: &[u8], all: bool, last: &mut Vec<Device>, out: &mut Vec<Device>) {
        let _ = devices(text, |number, values| {
            let Ok(number) = std::str::from_utf8(number) else { return };
            if values.iter().all(Option::is_none) {
                return;
            }
            let place = last.iter().position(|d| &*d.number == number);
            if !all && place.is_some_and(|i| last[i].values == values) {
                return;
            }
            let place = place.unwrap_or_else(|| {
                let (number, name) = self.name(number);
                last.push(Device { number, name, values });
                last.len() - 1
            });
            last[place].values = values;
            out.push(last[place].clone());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_a_row_when_it_changes() {
        let (mut d, mut last) = (Devices::default(), Vec::new());
        let mut read = |text: &str, all| {
            let mut out = Vec::new();
            d.changed(text.as_bytes(), all, &mut last, &mut out);
            out.iter().map(|d| format!("{} {:?}", d.number, d.values[0])).collect::<Vec<_>>()
        };
        assert_eq!(read("8:0 rbytes=1 rios=1\n8:16 \n", false), ["8:0 Some(1)"]);
        assert!(read("8:0 rbytes=1 rios=1\n", false).is_empty());
        assert_eq!(read("8:0 rbytes=1 rios=1\n8:16 rbytes=5\n", false), ["8:16 Some(5)"]);
        assert_eq!(read("8:0 rbytes=1 rios=1\n8:16 rbytes=5\n", true).len(), 2);
        assert_eq!(read("8:0 rbytes=2 rios=2\n8:16 rbytes=5\n", false), ["8:0 Some(2)"]);
    }
}
