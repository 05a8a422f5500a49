//! An object store in memory that fails as real ones do: before or after it did what it was asked, or never answers. And it counts
//! what it was asked. Included by path; never in the product.
#![allow(dead_code, reason = "each test binary uses its own part")]

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use std::collections::BTreeMap;
use std::fmt;
use std::future::pending;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// It did nothing, and says that it failed.
    Before,
    /// It did it, and says that it failed: the answer was lost.
    After,
    /// It did nothing, and says nothing.
    Silent,
    /// It did it, and says nothing.
    SilentAfter,
}

type Plan = Arc<dyn Fn(u64) -> Fault + Send + Sync>;

#[derive(Clone)]
pub struct Faulty {
    inner: Arc<InMemory>,
    plan: Arc<Mutex<Plan>>,
    /// A name that is never put.
    refused: Arc<Mutex<String>>,
    pub operations: Arc<AtomicU64>,
    pub lists: Arc<AtomicU64>,
    pub gets: Arc<AtomicU64>,
    pub puts: Arc<AtomicU64>,
    pub bytes_read: Arc<AtomicU64>,
}

impl Default for Faulty {
    fn default() -> Self {
        let none: Plan = Arc::new(|_| Fault::None);
        Self {
            inner: Arc::new(InMemory::new()),
            plan: Arc::new(Mutex::new(none)),
            refused: Arc::default(),
            operations: Arc::default(),
            lists: Arc::default(),
            gets: Arc::default(),
            puts: Arc::default(),
            bytes_read: Arc::default(),
        }
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

fn error() -> Error {
    Error::Generic { store: "faulty", source: "500 Internal Server Error".into() }
}

impl Faulty {
    /// From now on, by the number of the operation, which begins at 1 again.
    pub fn plan(&self, plan: impl Fn(u64) -> Fault + Send + Sync + 'static) {
        *self.plan.lock().expect("no panic") = Arc::new(plan);
        self.operations.store(0, Ordering::SeqCst);
    }

    /// From now on nothing can be put under that name.
    pub fn refuse(&self, name: &str) {
        name.clone_into(&mut self.refused.lock().expect("no panic"));
    }

    fn next(&self) -> Fault {
        let n = self.operations.fetch_add(1, Ordering::SeqCst) + 1;
        let plan = self.plan.lock().expect("no panic").clone();
        plan(n)
    }

    async fn at<T>(&self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        match self.next() {
            Fault::None => operation.await,
            Fault::Before => Err(error()),
            Fault::After => {
                let _ = operation.await;
                Err(error())
            }
            Fault::Silent => pending().await,
            Fault::SilentAfter => {
                let _ = operation.await;
                pending().await
            }
        }
    }

    /// All objects with their bytes.
    pub async fn all(&self) -> BTreeMap<String, Vec<u8>> {
        let metas: Vec<ObjectMeta> = self.inner.list(None).map(|m| m.expect("listed")).collect().await;
        let mut out = BTreeMap::new();
        for meta in metas {
            let got = self.inner.get_opts(&meta.location, GetOptions::default()).await.expect("there");
            out.insert(meta.location.to_string(), got.bytes().await.expect("bytes").to_vec());
        }
        out
    }

    pub fn asked(&self, what: &AtomicU64) -> u64 {
        what.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
struct Parts {
    store: Faulty,
    inner: Box<dyn MultipartUpload>,
}

#[async_trait]
impl MultipartUpload for Parts {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (store, part) = (self.store.clone(), self.inner.put_part(data));
        Box::pin(async move { store.at(part).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let store = self.store.clone();
        store.at(self.inner.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.puts.fetch_add(1, Ordering::SeqCst);
        if location.as_ref() == *self.refused.lock().expect("no panic") {
            return Err(error());
        }
        self.at(self.inner.put_opts(location, payload, opts)).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.puts.fetch_add(1, Ordering::SeqCst);
        let inner = self.at(self.inner.put_multipart_opts(location, opts)).await?;
        Ok(Box::new(Parts { store: self.clone(), inner }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        let is_head = options.head;
        let got = self.at(self.inner.get_opts(location, options)).await?;
        if !is_head {
            self.bytes_read.fetch_add(got.range.end - got.range.start, Ordering::SeqCst);
        }
        Ok(got)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        match self.next() {
            Fault::None => self.inner.list(prefix),
            _ => stream::once(async { Err(error()) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        self.at(self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
