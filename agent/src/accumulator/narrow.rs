//! Rows of the `metrics` table, packed: a header for each reading of a cgroup or of the node, and 16 bytes a value.

use super::samples::Stamp;
use crate::catalogue::loose::Metric;
use crate::cgroup::Meta;
use std::sync::Arc;

/// A value of a series; not a number stands for "max", no limit.
pub type Value = (Arc<Metric>, f64);

#[derive(Clone, Debug)]
pub(super) struct Head {
    pub at: Stamp,
    /// `None` = of the node.
    pub meta: Option<Arc<Meta>>,
    /// Where its values end.
    pub end: usize,
}

#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(super) heads: Vec<Head>,
    pub(super) values: Vec<Value>,
}

impl Metrics {
    /// Adds what was read at one instant; `values` is empty afterwards. Gives the number of rows.
    pub fn commit(&mut self, at: Stamp, meta: Option<&Arc<Meta>>, values: &mut Vec<Value>) -> u64 {
        let rows = values.len() as u64;
        if rows > 0 {
            self.values.append(values);
            self.heads.push(Head { at, meta: meta.cloned(), end: self.values.len() });
        }
        rows
    }

    pub fn len(&self) -> usize {
        self.values.len()
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Bytes held, by capacity.
    pub fn bytes(&self) -> usize {
        self.heads.capacity() * size_of::<Head>() + self.values.capacity() * size_of::<Value>()
    }
}
