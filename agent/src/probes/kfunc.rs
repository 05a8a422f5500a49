//! Puts the kernel's own ids of its functions into calls that the eBPF object makes by numbers of ours: aya can call helpers
//! only, and these functions have no number but that of their BTF (Documentation/bpf/kfuncs.rst of the kernel).
//!
//! Pure: bytes in, bytes out. `walk` loads what comes out of it.

use super::btf::Btf;
use agent_ebpf::kfunc;
use zerocopy::IntoBytes;

/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// `BPF_PSEUDO_KFUNC_CALL`, the source register of such a call.
const KFUNC: u8 = 2;

/// The number that stands for a function in the object, and the id that this kernel has for it.
pub(super) type Ids = [(u32, u32); kfunc::ALL.len()];

/// The ids; the name of one that this kernel does not have.
pub(super) fn ids(btf: &Btf) -> Result<Ids, &'static str> {
    let mut ids = kfunc::ALL.map(|(number, _)| (number, 0));
    for (id, (_, name)) in ids.iter_mut().zip(kfunc::ALL) {
        id.1 = btf.function_id(name).ok_or(name)?;
    }
    Ok(ids)
}

/// The object with these ids in its calls; in words, since an ELF file wants to be aligned.
pub(super) fn with_ids(object: &[u8], ids: &Ids) -> Vec<u64> {
    // instructions have 8 bytes and their sections begin at a multiple of that
    let mut patched = vec![0u64; object.len().div_ceil(8)];
    let bytes = patched.as_mut_bytes();
    bytes[..object.len()].copy_from_slice(object);
    for instruction in bytes.chunks_exact_mut(8) {
        let (head, number) = instruction.split_at_mut(4);
        for (ours, id) in ids {
            if *head == [CALL, 0, 0, 0] && *number == ours.to_ne_bytes() {
                head[1] = KFUNC << 4;
                number.copy_from_slice(&id.to_ne_bytes());
                break;
            }
        }
    }
    patched
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_by_our_numbers_become_calls_by_id_and_all_else_stays() {
        let helper = [CALL, 0, 0, 0, 5, 0, 0, 0];
        let ours = |i: usize| {
            let mut call = helper;
            call[4..].copy_from_slice(&kfunc::ALL[i].0.to_ne_bytes());
            call
        };
        let object = [&helper[..], &ours(0), &ours(3), &[CALL]].concat();
        let ids = kfunc::ALL.map(|(number, _)| (number, 7_000_000 + (number & 0xff)));
        let patched = with_ids(&object, &ids);
        let call = |id: u32| [&[CALL, KFUNC << 4, 0, 0][..], &id.to_ne_bytes()].concat();
        let wanted = [&helper[..], &call(7_000_001), &call(7_000_004), &[CALL]].concat();
        assert_eq!(patched.as_bytes()[..object.len()], wanted);
    }

    #[test]
    fn the_embedded_object_calls_each_of_them() {
        let Some(object) = super::super::OBJECT else {
            println!("SKIPPED the_embedded_object_calls_each_of_them: built without the eBPF object");
            return;
        };
        let ids = kfunc::ALL.map(|(number, _)| (number, number & 0xff));
        let patched = with_ids(object, &ids);
        for (number, id) in ids {
            let call = [&[CALL, KFUNC << 4, 0, 0][..], &id.to_ne_bytes()].concat();
            assert!(patched.as_bytes().chunks_exact(8).any(|i| i == call), "{number:#x} is not called");
        }
    }
}
