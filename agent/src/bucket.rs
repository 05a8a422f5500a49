//! An object store (S3 and its likes, GCS, Azure, a folder) with the few operations that we need of one, each counted.
//!
//! Credentials come from the environment or from the workload's identity, as the providers' own tools find them; nothing of them is
//! logged. Never decides what is written or read: `ship` writes, `fleet` reads. Whatever a store answers ends as a [`BucketError`]
//! that says where, what, and how to mend it.

use crate::config::Ship;
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    BackoffConfig, Certificate, ClientOptions, Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload,
    RetryConfig,
};
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use url::Url;

/// Objects of one answer to a LIST, with every provider.
const LISTED_AT_ONCE: u64 = 1000;
/// A file beyond this goes up in parts of it, so that no more than one is in memory.
pub const PART_BYTES: u64 = 8 << 20;
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// What the client itself tries again, before an error is one.
const QUICK_RETRIES: usize = 2;

#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    #[error("{url}: {reason}; give s3://, gs:// or az://bucket/prefix, or file:///folder")]
    Url { url: String, reason: String },
    #[error("cannot read the certificates {} (ship.ca_file): {reason}; name a file of PEM certificates", path.display())]
    Certificates { path: PathBuf, reason: String },
    #[error("{url}: {reason}; docs/fleet.md says which variables each provider looks for")]
    Build { url: String, reason: String },
    #[error("cannot {verb} {at}: {}", words(source))]
    Request { verb: &'static str, at: String, source: Error },
    #[error("cannot read {}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{at} became shorter while it was copied")]
    Short { at: String },
}

impl BucketError {
    /// There is nothing of that name, in a bucket that is there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Request { source: Error::NotFound { source, .. }, .. } if !names(&**source, "NoSuchBucket"))
    }

    fn is_there_already(&self) -> bool {
        matches!(self, Self::Request { source: Error::AlreadyExists { .. } | Error::Precondition { .. }, .. })
    }

    /// Not the store that failed: the file cannot be read, and another may.
    pub fn is_of_the_file(&self) -> bool {
        matches!(self, Self::File { .. } | Self::Short { .. })
    }
}

/// Whether an error or one of its causes names something.
fn names(error: &(dyn std::error::Error + 'static), word: &str) -> bool {
    let mut at = Some(error);
    while let Some(e) = at {
        if e.to_string().contains(word) {
            return true;
        }
        at = e.source();
    }
    false
}

/// What a store's error means, on one line, and the mend where there is one.
fn words(error: &Error) -> String {
    let text = said(error);
    let mend = if names(error, "NoSuchBucket") || names(error, "ContainerNotFound") {
        "the bucket is not there: make it, or name another with ship.url"
    } else if names(error, "RequestTimeTooSkewed") {
        "this machine's clock is off by more than 15 min: set it (chronyc makestep)"
    } else if names(error, "ExpiredToken")
        || names(error, "InvalidAccessKeyId")
        || names(error, "SignatureDoesNotMatch")
    {
        "the credentials are expired or wrong: renew them in the agent's environment, or give its workload an identity"
    } else {
        match error {
            Error::Unauthenticated { .. } => {
                "the credentials are expired or wrong: renew them in the agent's environment, or give its workload an identity"
            }
            Error::PermissionDenied { .. } => {
                "these credentials may not do that: docs/fleet.md lists the rights that are needed"
            }
            _ => return text,
        }
    };
    format!("{mend} ({text})")
}

/// An error with its causes, each said once, without the line ends of a server's XML.
fn said(error: &Error) -> String {
    const LONGEST: usize = 600;
    let mut out = error.to_string();
    let mut at = std::error::Error::source(error);
    while let Some(cause) = at {
        let text = cause.to_string();
        if !out.contains(&text) {
            out = format!("{out}: {text}");
        }
        at = cause.source();
    }
    let line: Vec<&str> = out.split_whitespace().collect();
    let mut line = line.join(" ");
    if let Some((end, _)) = line.char_indices().nth(LONGEST) {
        line.truncate(end);
        line.push('…');
    }
    line
}

/// Requests and bytes so far. A LIST counts once for each thousand of objects, as it is billed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub lists: u64,
    pub gets: u64,
    pub puts: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} LIST, {} GET, {} bytes read", self.lists, self.gets, self.bytes_read)
    }
}

#[derive(Default)]
struct Counters {
    lists: AtomicU64,
    gets: AtomicU64,
    puts: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

/// How an object came to be where it was to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    Made,
    /// Somebody made it before.
    Exists,
}

/// Something in a bucket, named from the prefix on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub name: String,
    pub bytes: u64,
}

#[derive(Clone)]
pub struct Bucket {
    store: Arc<dyn ObjectStore>,
    prefix: String,
    /// As a person has it.
    url: String,
    counters: Arc<Counters>,
    part_bytes: u64,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

fn certificates(settings: &Ship) -> Result<Vec<Certificate>, BucketError> {
    if settings.ca_file.as_os_str().is_empty() {
        return Ok(Vec::new());
    }
    let wrong = |reason| BucketError::Certificates { path: settings.ca_file.clone(), reason };
    let pem = fs::read(&settings.ca_file).map_err(|e| wrong(e.to_string()))?;
    let found = Certificate::from_pem_bundle(&pem).map_err(|e| wrong(e.to_string()))?;
    if found.is_empty() { Err(wrong("it holds none".to_owned())) } else { Ok(found) }
}

impl Bucket {
    /// Whether a place is a bucket and no folder or agent.
    pub fn is_url(place: &str) -> bool {
        Ship::SCHEMES.iter().any(|scheme| place.starts_with(scheme))
    }

    /// Asks nobody yet: what is wrong with the place or the credentials shows at the first request.
    pub fn open(settings: &Ship) -> Result<Self, BucketError> {
        let own = || settings.url.clone();
        let wrong = |reason: String| BucketError::Url { url: own(), reason };
        let url = Url::parse(&settings.url).map_err(|e| wrong(e.to_string()))?;
        // Two crates of ours bring TLS; none of them may choose for the other.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut client = ClientOptions::new()
            .with_timeout(Duration::from_secs(settings.timeout_s))
            .with_connect_timeout(CONNECT_WITHIN)
            .with_allow_http(settings.endpoint.starts_with("http://") || allows_http());
        for certificate in certificates(settings)? {
            client = client.with_root_certificate(certificate);
        }
        let retry = RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: QUICK_RETRIES,
            retry_timeout: Duration::from_secs(settings.timeout_s),
        };
        let build = |e: Error| BucketError::Build { url: own(), reason: said(&e) };
        let prefix = url.path().trim_matches('/').to_owned();
        let host = url.host_str().unwrap_or_default();
        if host.is_empty() && url.scheme() != "file" {
            return Err(wrong("it names no bucket".to_owned()));
        }
        let store: Arc<dyn ObjectStore> = match url.scheme() {
            "s3" => {
                let mut s3 = AmazonS3Builder::from_env().with_bucket_name(host);
                if !settings.endpoint.is_empty() {
                    s3 = s3.with_endpoint(&settings.endpoint);
                }
                if !settings.region.is_empty() {
                    s3 = s3.with_region(&settings.region);
                }
                for (key, value) in [
                    ("aws_server_side_encryption", &settings.sse),
                    ("aws_sse_kms_key_id", &settings.sse_kms_key),
                ] {
                    if let (false, Ok(key)) = (value.is_empty(), key.parse()) {
                        s3 = s3.with_config(key, value);
                    }
                }
                Arc::new(s3.with_client_options(client).with_retry(retry).build().map_err(build)?)
            }
            "gs" => {
                let mut gcs = GoogleCloudStorageBuilder::from_env().with_bucket_name(host);
                if !settings.endpoint.is_empty() {
                    gcs = gcs.with_base_url(&settings.endpoint);
                }
                Arc::new(gcs.with_client_options(client).with_retry(retry).build().map_err(build)?)
            }
            "az" => {
                let mut azure = MicrosoftAzureBuilder::from_env().with_container_name(host);
                if !settings.endpoint.is_empty() {
                    azure = azure.with_endpoint(settings.endpoint.clone());
                }
                Arc::new(azure.with_client_options(client).with_retry(retry).build().map_err(build)?)
            }
            "file" => {
                let folder = url.to_file_path().map_err(|()| wrong("it names no folder".to_owned()))?;
                if !folder.is_dir() {
                    return Err(wrong(format!("there is no folder {}", folder.display())));
                }
                let local = LocalFileSystem::new_with_prefix(&folder).map_err(build)?.with_fsync(true);
                return Ok(Self { url: own(), ..Self::over(Arc::new(local), "") });
            }
            other => return Err(wrong(format!("{other} is no kind of bucket"))),
        };
        Ok(Self { url: own(), ..Self::over(store, &prefix) })
    }

    /// Over a store of whatever kind.
    pub fn over(store: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        let url = format!("{store}/{prefix}");
        let counters = Arc::default();
        Self { store, prefix: prefix.to_owned(), url, counters, part_bytes: PART_BYTES }
    }

    /// The same with parts of another size.
    #[must_use]
    pub fn in_parts_of(self, part_bytes: u64) -> Self {
        Self { part_bytes, ..self }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn counts(&self) -> Counts {
        let of = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let c = &self.counters;
        Counts {
            lists: of(&c.lists),
            gets: of(&c.gets),
            puts: of(&c.puts),
            bytes_read: of(&c.bytes_read),
            bytes_written: of(&c.bytes_written),
        }
    }

    fn path(&self, name: &str) -> Result<Path, BucketError> {
        let whole = if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) };
        Path::parse(&whole).map_err(|e| BucketError::Url { url: whole.clone(), reason: e.to_string() })
    }

    fn failed<'a>(&'a self, verb: &'static str, name: &'a str) -> impl Fn(Error) -> BucketError + 'a {
        move |source| BucketError::Request {
            verb,
            at: format!("{}/{name}", self.url.trim_end_matches('/')),
            source,
        }
    }

    /// Puts bytes under a name that nothing has.
    pub async fn create(&self, name: &str, bytes: Bytes) -> Result<Put, BucketError> {
        let path = self.path(name)?;
        let length = bytes.len() as u64;
        count(&self.counters.puts, 1);
        let made = self.store.put_opts(&path, PutPayload::from_bytes(bytes), PutMode::Create.into()).await;
        match made.map_err(self.failed("write", name)) {
            Ok(_) => {
                count(&self.counters.bytes_written, length);
                Ok(Put::Made)
            }
            Err(e) if e.is_there_already() => Ok(Put::Exists),
            Err(e) => Err(e),
        }
    }

    /// Puts a file under a name that nothing has; a large one in parts, of which nothing is seen until all are there. No store
    /// has a conditional end of parts in common with the others: of a large file it is looked first.
    pub async fn create_from(&self, name: &str, file: &std::path::Path) -> Result<Put, BucketError> {
        let wrong = |source| BucketError::File { path: file.to_owned(), source };
        let mut open = File::open(file).map_err(wrong)?;
        let length = open.metadata().map_err(wrong)?.len();
        if length <= self.part_bytes {
            let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
            open.read_to_end(&mut bytes).map_err(wrong)?;
            return self.create(name, bytes.into()).await;
        }
        if self.size(name).await?.is_some() {
            return Ok(Put::Exists);
        }
        let path = self.path(name)?;
        let failed = self.failed("write", name);
        count(&self.counters.puts, 1);
        let mut parts = self.store.put_multipart(&path).await.map_err(&failed)?;
        let outcome = async {
            let mut left = length;
            while left > 0 {
                let mut part = vec![0; usize::try_from(left.min(self.part_bytes)).unwrap_or(usize::MAX)];
                open.read_exact(&mut part).map_err(|source| match source.kind() {
                    std::io::ErrorKind::UnexpectedEof => {
                        BucketError::Short { at: file.display().to_string() }
                    }
                    _ => BucketError::File { path: file.to_owned(), source },
                })?;
                left -= part.len() as u64;
                count(&self.counters.puts, 1);
                count(&self.counters.bytes_written, part.len() as u64);
                parts.put_part(PutPayload::from_bytes(part.into())).await.map_err(&failed)?;
            }
            count(&self.counters.puts, 1);
            parts.complete().await.map_err(&failed)
        };
        let outcome = outcome.await;
        if outcome.is_err() {
            // what cannot be taken back is for the bucket's own rule about unfinished uploads
            let _ = parts.abort().await;
        }
        outcome.map(|_| Put::Made)
    }

    /// Bytes of an object, `None` when there is none of that name.
    pub async fn size(&self, name: &str) -> Result<Option<u64>, BucketError> {
        let path = self.path(name)?;
        count(&self.counters.gets, 1);
        match self.store.head(&path).await.map_err(self.failed("look for", name)) {
            Ok(meta) => Ok(Some(meta.size)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub async fn range(&self, name: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        let path = self.path(name)?;
        count(&self.counters.gets, 1);
        let bytes = self.store.get_range(&path, range.clone()).await.map_err(self.failed("read", name))?;
        count(&self.counters.bytes_read, bytes.len() as u64);
        if bytes.len() as u64 == range.end - range.start {
            Ok(bytes)
        } else {
            Err(BucketError::Short { at: format!("{}/{name}", self.url) })
        }
    }

    /// All objects below a folder.
    pub async fn list(&self, folder: &str) -> Result<Vec<Object>, BucketError> {
        let path = self.path(folder)?;
        let found: Vec<_> =
            self.store.list(Some(&path)).try_collect().await.map_err(self.failed("list", folder))?;
        count(&self.counters.lists, (found.len() as u64).div_ceil(LISTED_AT_ONCE).max(1));
        let mut out: Vec<Object> = found
            .into_iter()
            .filter_map(|meta| Some(Object { name: self.named(&meta.location)?, bytes: meta.size }))
            .collect();
        out.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(out)
    }

    /// The folders that are in a folder, named from the prefix on.
    pub async fn folders(&self, folder: &str) -> Result<Vec<String>, BucketError> {
        let path = self.path(folder)?;
        let found = self.store.list_with_delimiter(Some(&path)).await.map_err(self.failed("list", folder))?;
        let entries = (found.common_prefixes.len() + found.objects.len()) as u64;
        count(&self.counters.lists, entries.div_ceil(LISTED_AT_ONCE).max(1));
        Ok(found.common_prefixes.iter().filter_map(|p| self.named(p)).collect())
    }

    fn named(&self, path: &Path) -> Option<String> {
        let rest = path.as_ref().strip_prefix(&self.prefix)?;
        Some(rest.trim_start_matches('/').to_owned())
    }
}

fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// As the providers' tools have it, for a server of one's own.
fn allows_http() -> bool {
    let of = |name| std::env::var(name).unwrap_or_default();
    of("AWS_ALLOW_HTTP") == "true"
        || ["AWS_ENDPOINT_URL", "AWS_ENDPOINT"].iter().any(|n| of(n).starts_with("http://"))
}

#[cfg(test)]
mod tests;
