//! The keys of `[lane]`: where its readings come from, how often, and what they may cost.
//!
//! Values only; `range` checks them. A period may be left to the agent, in words: "auto".

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lane {
    pub source: Source,
    pub period_ms: Period,
    pub cpu_budget_percent: f64,
    pub history_s: u64,
    pub memory_bytes: u64,
}

/// Where the lane's readings come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The walk where it can be had.
    Auto,
    Bpf,
    Pread,
}

/// A period in ms, or "auto".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    Auto,
    Ms(u64),
}

impl Period {
    /// The period, `auto_ms` where it is left to us.
    pub fn or(self, auto_ms: u64) -> u64 {
        match self {
            Self::Auto => auto_ms,
            Self::Ms(ms) => ms,
        }
    }
}

impl Serialize for Period {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => to.serialize_str("auto"),
            Self::Ms(ms) => to.serialize_u64(*ms),
        }
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl serde::de::Visitor<'_> for Either {
            type Value = Period;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number of milliseconds or \"auto\"")
            }

            fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<Period, E> {
                u64::try_from(v)
                    .map(Period::Ms)
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Signed(v), &self))
            }

            fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<Period, E> {
                Ok(Period::Ms(v))
            }

            // a number comes as text from the environment
            fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Period, E> {
                match v.parse() {
                    Ok(ms) => Ok(Period::Ms(ms)),
                    Err(_) if v == "auto" => Ok(Period::Auto),
                    Err(_) => Err(E::invalid_value(serde::de::Unexpected::Str(v), &self)),
                }
            }
        }
        from.deserialize_any(Either)
    }
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            source: Source::Auto,
            period_ms: Period::Auto,
            cpu_budget_percent: 1.0,
            history_s: 60,
            memory_bytes: 16 << 20,
        }
    }
}
