//! kubectl alone, for checks that need no cluster: the machine's own, that of the cluster's programs, else Debian's package
//! `kubernetes-client`, unpacked into the cache and installed nowhere. Called by `suite`.

use super::programs::{self, NEEDS, SUITE};
use crate::child::TempDir;
use crate::debian::{Apt, Of};
use crate::progress::{Step, say};
use crate::{paths, setup};
use anyhow::{Context as _, Result};
use std::fs;
use std::path::{Path, PathBuf};

const PACKAGE: &str = "kubernetes-client";
const PROGRAM: &str = "usr/bin/kubectl";

/// The folder that it is in, to be put into PATH; `None` where PATH has it.
pub fn folder() -> Result<Option<PathBuf>> {
    if paths::which("kubectl").is_some() {
        return Ok(None);
    }
    let cache = paths::cache()?.join("kubernetes");
    ready(&cache, fetch).map(Some)
}

fn ready(cache: &Path, fetch: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let own = cache.join(format!("kubectl-{SUITE}"));
    let places = [programs::folder_in(cache), own.clone()];
    let bin = |place: &Path| place.join(PROGRAM).parent().map(Path::to_path_buf).unwrap_or_default();
    if let Some(place) = places.iter().find(|p| p.join(PROGRAM).is_file()) {
        return Ok(bin(place));
    }
    // Beside its place and renamed in, so that what looks whole is whole.
    let fresh = cache.join(format!(".kubectl-{SUITE}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&fresh);
    fs::create_dir_all(&fresh).with_context(|| format!("cannot create {}", fresh.display()))?;
    let fetched = fetch(&fresh).and_then(|()| {
        let program = fresh.join(PROGRAM);
        fs::metadata(&program).with_context(|| format!("{PACKAGE} has no {}", program.display()))?;
        let _ = fs::remove_dir_all(&own);
        fs::rename(&fresh, &own).with_context(|| format!("cannot create {}", own.display()))
    });
    if fetched.is_err() {
        let _ = fs::remove_dir_all(&fresh);
    }
    fetched.map(|()| bin(&own))
}

fn fetch(into: &Path) -> Result<()> {
    // apt and the proof that what it brings is Debian's.
    setup::ensure(&NEEDS[..1])?;
    say("set-up needs kubectl, for the manifests as it builds them");
    let step = Step::begin(format!("fetching {PACKAGE} from Debian {SUITE}"));
    let state = TempDir::new("apt")?;
    let apt = Apt::new(state.path(), SUITE, Of::Binaries)?;
    apt.update()?;
    let names = apt.unpack(&[PACKAGE], into)?;
    step.done(&names.join(" "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{PROGRAM, programs, ready};
    use crate::child::TempDir;
    use anyhow::bail;
    use std::fs;
    use std::path::Path;

    fn put(folder: &Path) {
        let program = folder.join(PROGRAM);
        fs::create_dir_all(program.parent().expect("a parent")).expect("folders");
        fs::write(program, "").expect("a file");
    }

    #[test]
    fn it_is_fetched_once_and_not_where_the_clusters_programs_are() {
        let cache = TempDir::new("kubectl").expect("a folder");
        assert!(ready(cache.path(), |_| bail!("no network")).is_err());
        assert!(ready(cache.path(), |_| Ok(())).is_err(), "a package without it");
        assert_eq!(fs::read_dir(cache.path()).expect("a folder").count(), 0, "nothing is left of either");
        let fetched = ready(cache.path(), |into| {
            put(into);
            Ok(())
        });
        let fetched = fetched.expect("a folder");
        assert!(fetched.join("kubectl").is_file());
        assert_eq!(ready(cache.path(), |_| bail!("a second time")).expect("the same"), fetched);
        put(&programs::folder_in(cache.path()));
        let of_programs = ready(cache.path(), |_| bail!("a third time")).expect("theirs");
        assert!(of_programs.starts_with(programs::folder_in(cache.path())));
    }
}
