//! Whether memory.stat can have changed since it was read: half of a sweep over the hot files is this one, and most containers
//! stand still most of the time, frozen and empty ones always.
//!
//! It is taken over from the row before only if all of these say that nothing happened: the kernel's own sums of its numbers
//! bear the same mark as before it was read (the lane's walk makes marks once a second); memory.current, swap, events and
//! pids are as they were in every look of the lane since; and nobody in the cgroup has used any CPU. A slow sample reads
//! it in any case. Without the walk there is no mark, and it is read each time.

use crate::recorder::MASK_WORDS;

/// A mark older than this says nothing: two walks with marks, and some.
const MARK_IS_YOUNG_NS: u64 = 2_500_000_000;

#[derive(Clone, Debug, Default)]
pub struct Still {
    mark: Option<(u32, u64)>,
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
    pub fn look(&mut self, ktime_ns: u64, moved: bool, mark: Option<u32>) {
        self.moved |= moved;
        if let Some(mark) = mark {
            self.mark = Some((mark, ktime_ns));
        }
    }

    /// The columns that memory.stat has filled, if it would fill them with the same values now.
    pub(super) fn columns(&self, now_ns: u64, usage_usec: Option<u64>) -> Option<[u64; MASK_WORDS]> {
        let (mark, at_ns) = self.mark?;
        let read = self.read?;
        let same = mark == read.mark && usage_usec == Some(read.usage_usec) && !self.moved;
        (same && now_ns.saturating_sub(at_ns) < MARK_IS_YOUNG_NS).then_some(read.columns)
    }

    /// It was read, the mark that is known being older than that.
    pub(super) fn read(&mut self, usage_usec: Option<u64>, columns: [u64; MASK_WORDS]) {
        self.moved = false;
        self.read =
            self.mark.zip(usage_usec).map(|((mark, _), usage_usec)| Read { mark, usage_usec, columns });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    /// Read at 1 s, with a mark of before.
    fn read() -> Still {
        let mut s = Still::default();
        s.look(S, true, Some(7));
        assert_eq!(s.columns(S, Some(5)), None, "never read");
        s.read(Some(5), [3; MASK_WORDS]);
        s
    }

    #[test]
    fn what_stands_still_in_all_respects_is_taken_over() {
        let mut s = read();
        s.look(2 * S, false, Some(7));
        assert_eq!(s.columns(2 * S, Some(5)), Some([3; MASK_WORDS]));
    }

    #[test]
    fn whatever_moves_has_it_read() {
        let changed = |look: fn(&mut Still)| {
            let mut s = read();
            look(&mut s);
            s.columns(2 * S, Some(5)).is_none()
        };
        assert!(changed(|s| s.look(2 * S, false, Some(8))), "its sums");
        assert!(changed(|s| s.look(2 * S, true, Some(7))), "a value of the lane");
        assert!(
            changed(|s| {
                s.look(2 * S, true, None);
                s.look(2 * S + 1, false, Some(7));
            }),
            "a value of the lane that has come back"
        );
        assert!(!changed(|s| s.look(2 * S, false, Some(7))));
        assert!(read().columns(2 * S, Some(6)).is_none(), "somebody ran");
        assert!(read().columns(2 * S, None).is_none(), "nobody knows whether somebody ran");
        assert!(read().columns(4 * S, Some(5)).is_none(), "the mark is old");
    }

    #[test]
    fn without_a_mark_it_is_read_each_time() {
        let mut s = Still::default();
        s.look(S, false, None);
        s.read(Some(5), [3; MASK_WORDS]);
        assert_eq!(s.columns(S, Some(5)), None);
    }
}
