//! What the writer says in the log: people and scripts watch for these lines.

#[path = "support/disks.rs"]
mod disks;
#[path = "support/rows.rs"]
mod rows;

use crossbeam_channel::unbounded;
use disks::FullDisk;
use fgm::store::{SealResult, Store, Writer};
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(20);

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("not poisoned").write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn lines_with(&self, word: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().expect("not poisoned").clone()).expect("text");
        text.lines().filter(|l| l.contains(word)).map(str::to_owned).collect()
    }
}

// One test: the subscriber is the process's.
#[test]
fn a_rotation_is_logged_with_its_sizes_and_a_full_disk_once() {
    let log = Log::default();
    let sink = log.clone();
    tracing_subscriber::fmt().with_ansi(false).with_writer(move || sink.clone()).init();

    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::open(dir.path()).expect("opens");
    let disk = Arc::new(FullDisk { is_full: AtomicBool::new(false) });
    let writer = Writer::start_on(store, rows::BOOT_ID, disk.clone()).expect("starts");
    let (tell, told) = unbounded();
    let mut total = 0;
    for rotation in 1..=2 {
        writer.seal(rotation, rows::all(), rows::metadata(), Some(tell.clone()));
        let SealResult::Stored { files, .. } = told.recv_timeout(WAIT).expect("an answer") else {
            panic!("the disk is not full yet")
        };
        let size: u64 = files.iter().map(|f| std::fs::metadata(&f.path).expect("there").len()).sum();
        total += size;
        let lines = log.lines_with(&format!("File rotation completed rotation={rotation} "));
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].ends_with(&format!("file_size_bytes={size} total_bytes={total}")), "{lines:?}");
        assert!(lines[0].contains(" INFO "), "{lines:?}");
    }

    disk.is_full.store(true, Ordering::SeqCst);
    for rotation in 3..6 {
        writer.seal(rotation, rows::all(), vec![], Some(tell.clone()));
        assert!(matches!(told.recv_timeout(WAIT), Ok(SealResult::Waiting { .. })));
        while told.recv_timeout(Duration::from_millis(50)).is_ok() {}
    }
    assert_eq!(log.lines_with("the store cannot be written").len(), 1, "once, not at each attempt");
    disk.is_full.store(false, Ordering::SeqCst);
    writer.shutdown(WAIT).expect("in time");
    assert_eq!(log.lines_with("the store can be written again").len(), 1);
    assert_eq!(log.lines_with("File rotation completed").len(), 5, "nothing was lost");
}
