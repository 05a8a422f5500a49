//! The words of the field as types: cgroup ids, scopes, QoS classes, causes.
//!
//! Nothing here reads a file or a clock. Everybody uses it.

use std::fmt;

/// A cgroup's kernfs id, which is the inode number of its directory. Unique within one boot and one hierarchy;
/// ids are reused by the kernel only after wrapping a generation, but never assume so across boots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CgroupId(pub u64);

impl CgroupId {
    /// As the tables store it: signed 64 bits, since several engines serve unsigned integers badly.
    #[expect(
        clippy::cast_possible_wrap,
        reason = "bit pattern kept on purpose; kernfs ids stay far below 2^63"
    )]
    pub fn as_i64(self) -> i64 {
        self.0 as i64
    }

    /// The inverse of [`CgroupId::as_i64`].
    #[expect(clippy::cast_sign_loss, reason = "the inverse of as_i64")]
    pub fn from_i64(v: i64) -> Self {
        Self(v as u64)
    }
}

impl fmt::Display for CgroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a cgroup is to the person who reads the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    Container,
    Pod,
    Service,
    Node,
    Other,
}

impl Scope {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Pod => "pod",
            Self::Service => "service",
            Self::Node => "node",
            Self::Other => "other",
        }
    }
}

/// Kubernetes' quality-of-service class, as the cgroup path tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// Why a sample was taken (DESIGN: base is the steady rhythm, history the lane before a trigger, burst after it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    Base,
    History,
    Burst,
}

impl Cause {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::History => "history",
            Self::Burst => "burst",
        }
    }
}

/// How bad an event or an incident is. The order is the order of the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    Info,
    Warning,
    Critical,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// The tables of the store, each a folder of Parquet files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    Samples,
    Events,
    Incidents,
    Processes,
    IoDevices,
    Metrics,
    Node,
    Containers,
    Ledger,
}

impl Table {
    pub const ALL: [Self; 9] = [
        Self::Samples,
        Self::Events,
        Self::Incidents,
        Self::Processes,
        Self::IoDevices,
        Self::Metrics,
        Self::Node,
        Self::Containers,
        Self::Ledger,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Samples => "samples",
            Self::Events => "events",
            Self::Incidents => "incidents",
            Self::Processes => "processes",
            Self::IoDevices => "io_devices",
            Self::Metrics => "metrics",
            Self::Node => "node",
            Self::Containers => "containers",
            Self::Ledger => "ledger",
        }
    }
}
