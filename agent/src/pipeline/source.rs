//! What the HTTP side sees of the running agent.

use super::inbox::{Input, Outside};
use super::shared::{MAX_INCIDENTS, Shared};
use crate::accumulator::NodeNames;
use crate::incident::Incident;
use crate::names::Table;
use crate::query;
use crate::recorder::Series;
use crate::store::Store;
use crate::viewer::Source;
use arrow::array::RecordBatch;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long the loop may take to answer; it answers between two ticks.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

pub struct LiveSource {
    shared: Arc<Shared>,
    outside: Outside,
    series: Series,
    store: Arc<Store>,
    names: NodeNames,
}

impl LiveSource {
    pub fn new(
        shared: Arc<Shared>,
        outside: Outside,
        series: Series,
        store: Arc<Store>,
        names: NodeNames,
    ) -> Self {
        Self { shared, outside, series, store, names }
    }
}

impl Source for LiveSource {
    async fn memory(&self, table: Table) -> Vec<RecordBatch> {
        let (reply, answer) = oneshot::channel();
        if !self.outside.send(Input::Rows(reply)) {
            return Vec::new();
        }
        let Ok(Ok(pending)) = tokio::time::timeout(ANSWER_WITHIN, answer).await else { return Vec::new() };
        let mut out = Vec::new();
        for p in pending {
            // a fault of ours, logged by the sealer as well; the rows on disk are served all the same
            let batches = p.batches(&self.names).unwrap_or_default();
            out.extend(batches.into_iter().filter(|(t, _)| *t == table).map(|(_, b)| b));
        }
        out
    }

    fn incidents(&self) -> Vec<Incident> {
        self.shared.incidents()
    }

    fn status(&self) -> Value {
        let mut status = self.shared.status().unwrap_or_else(|| json!({}));
        if let Some(map) = status.as_object_mut() {
            map.insert("store".to_owned(), self.store.status());
        }
        status
    }

    fn ready(&self) -> Result<(), String> {
        self.shared
            .status()
            .map(|_| ())
            .ok_or_else(|| "the first round of sampling is not done yet".to_owned())
    }

    fn metrics(&self) -> String {
        self.series.render()
    }
}

/// Incidents of earlier runs, as the store has them; the latest revision of each, the newest ones.
pub fn stored_incidents(store: &Store) -> Vec<Incident> {
    let filter = query::Filter::range(i64::MIN, i64::MAX);
    let columns = Some(&["json"][..]);
    match query::rows(&store.view(), Table::Incidents, &filter, columns, 100 * MAX_INCIDENTS as u64) {
        Ok((batches, _)) => batches
            .iter()
            .flat_map(|b| (0..b.num_rows()).filter_map(move |row| query::text(b, "json", row)))
            .filter_map(|text| serde_json::from_str(text).ok())
            .collect(),
        Err(error) => {
            tracing::warn!(%error, "earlier incidents cannot be listed");
            Vec::new()
        }
    }
}
