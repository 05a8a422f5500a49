//! Whether memory.stat can have changed since it was read: half of a sweep over the hot files is this one, and most containers
//! stand still most of the time, frozen and empty ones always.
//!
//! It is taken over from the row before only if all of these say that the file would give the same: the kernel's own sums of its
//! numbers, and the changes that it has not summed up yet, bear the same mark as before it was read, the mark being made by the
//! very look of the lane that the row is dated by; memory.current, swap, events and pids are as they were in every look
//! since; and nobody in the cgroup has used any CPU. Before Linux 6.8 the kernel does not tell of one cgroup what is not summed up: a row
//! may there be as old as its sums, 2 s, where reading the file might have renewed them. A slow sample reads it in any case.
//! Without the walk there is no mark, and it is read each time.

use crate::recorder::MASK_WORDS;

#[derive(Clone, Debug, Default)]
pub struct Still {
    /// Of the latest look, if it made one.
    mark: Option<u32>,
    moved: bool,
    read: Option<Read>,
}

/// What was the case when it was read.
#[derive(Clone, Copy, Debug)]
struct Read {
    mark: u32,
    usage_usec: u64,
    columns: [u64; MASK_WORDS],
}

impl Still {
    /// A look of the lane: whether one of its values is another one than at the look before, and the mark if one was made.
    pub fn look(&mut self, moved: bool, mark: Option<u32>) {
        self.moved |= moved;
        self.mark = mark;
    }

    /// The columns that memory.stat has filled, if it would fill them with the same values at the latest look.
    pub(super) fn columns(&self, usage_usec: Option<u64>) -> Option<[u64; MASK_WORDS]> {
        let read = self.read?;
        let same = self.mark == Some(read.mark) && usage_usec == Some(read.usage_usec) && !self.moved;
        same.then_some(read.columns)
    }

    /// It was read, after the latest look.
    pub(super) fn read(&mut self, usage_usec: Option<u64>, columns: [u64; MASK_WORDS]) {
        self.moved = false;
        self.read = self.mark.zip(usage_usec).map(|(mark, usage_usec)| Read { mark, usage_usec, columns });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Read behind a look that made a mark.
    fn read() -> Still {
        let mut s = Still::default();
        s.look(true, Some(7));
        assert_eq!(s.columns(Some(5)), None, "never read");
        s.read(Some(5), [3; MASK_WORDS]);
        s
    }

    #[test]
    fn what_stands_still_in_all_respects_is_taken_over() {
        let mut s = read();
        s.look(false, None);
        assert_eq!(s.columns(Some(5)), None, "the latest look made no mark");
        s.look(false, Some(7));
        assert_eq!(s.columns(Some(5)), Some([3; MASK_WORDS]));
    }

    #[test]
    fn whatever_moves_has_it_read() {
        let changed = |look: fn(&mut Still)| {
            let mut s = read();
            look(&mut s);
            s.columns(Some(5)).is_none()
        };
        assert!(changed(|s| s.look(false, Some(8))), "its sums");
        assert!(changed(|s| s.look(true, Some(7))), "a value of the lane");
        assert!(
            changed(|s| {
                s.look(true, None);
                s.look(false, Some(7));
            }),
            "a value of the lane that has come back"
        );
        assert!(!changed(|s| s.look(false, Some(7))));
        assert!(read().columns(Some(6)).is_none(), "somebody ran");
        assert!(read().columns(None).is_none(), "nobody knows whether somebody ran");
    }

    #[test]
    fn without_a_mark_it_is_read_each_time() {
        let mut s = Still::default();
        s.look(false, None);
        s.read(Some(5), [3; MASK_WORDS]);
        s.look(false, Some(7));
        assert_eq!(s.columns(Some(5)), None);
    }
}
