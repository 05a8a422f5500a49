//! A reader of BTF, the kernel's description of its own types: where a struct member lies, what a tracepoint passes.
//!
//! Pure functions over bytes: `offsets` feeds it `/sys/kernel/btf/vmlinux`. Any bytes may come; it must never
//! panic. Format: Documentation/bpf/btf.rst of the kernel. aya parses the same file, but has no public way to ask
//! for the offset of a member.

/// Kinds of types, as numbered in include/uapi/linux/btf.h.
mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

const MAGIC: u16 = 0xeb9f;
/// Longest chain of typedefs and qualifiers followed; a cycle in broken data ends here.
const MAX_CHAIN: u32 = 32;
/// Deepest nesting of anonymous structs and unions searched. The kernel's own go to about four.
const MAX_DEPTH: u32 = 8;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BtfError {
    #[error("not BTF: it begins with {0:#06x}, not 0xeb9f")]
    Magic(u16),
    #[error("BTF is cut off at byte {at}")]
    Truncated { at: usize },
    #[error("BTF type {id} is of kind {kind}, unknown to this version")]
    Kind { id: u32, kind: u32 },
}

/// What a function argument is, as far as the probes need to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arg {
    /// Pointer to the named struct.
    StructPtr(String),
    /// Any other pointer.
    Ptr,
    /// A number of this many bytes.
    Int(u32),
    Other,
}

/// A parsed image. Holds the bytes and the position of each type.
pub struct Btf {
    data: Vec<u8>,
    /// Offset of each type's record; index 0 is void.
    types: Vec<usize>,
    /// The same by kind, since a kernel has 150,000 types but only 10,000 structs.
    by_kind: Vec<Vec<usize>>,
    strings: usize,
    strings_end: usize,
}

/// The fixed part of a type's record.
#[derive(Clone, Copy)]
struct Type {
    at: usize,
    name: u32,
    kind: u32,
    vlen: usize,
    flag: bool,
    /// The type referred to; for types that have one, the size in bytes.
    refers: u32,
}

impl Btf {
    pub fn parse(data: Vec<u8>) -> Result<Self, BtfError> {
        let cut = |at| BtfError::Truncated { at };
        let magic = data.first_chunk::<2>().map(|b| u16::from_ne_bytes(*b)).ok_or(cut(0))?;
        if magic != MAGIC {
            return Err(BtfError::Magic(magic));
        }
        let word = |at: usize| word(&data, at).map(|v| v as usize).ok_or(cut(at));
        let (header, type_off, type_len) = (word(4)?, word(8)?, word(12)?);
        let (str_off, str_len) = (word(16)?, word(20)?);
        let add =
            |a: usize, b: usize| a.checked_add(b).filter(|&end| end <= data.len()).ok_or(cut(data.len()));
        let start = add(header, type_off)?;
        let end = add(start, type_len)?;
        let strings = add(header, str_off)?;
        let strings_end = add(strings, str_len)?;
        let mut btf = Self { data, types: vec![0], by_kind: vec![Vec::new(); 20], strings, strings_end };
        let mut at = start;
        while at < end {
            let ty = btf.record(at).ok_or(cut(at))?;
            let id = u32::try_from(btf.types.len()).map_err(|_| cut(at))?;
            let extra = match ty.kind {
                kind::INT | kind::VAR | kind::DECL_TAG => 4,
                kind::ARRAY => 12,
                kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * ty.vlen,
                kind::ENUM | kind::FUNC_PROTO => 8 * ty.vlen,
                1..=19 => 0,
                kind => return Err(BtfError::Kind { id, kind }),
            };
            at += 12 + extra;
            if at > end {
                return Err(cut(end));
            }
            btf.types.push(ty.at);
            if let Some(same) = btf.by_kind.get_mut(ty.kind as usize) {
                same.push(ty.at);
            }
        }
        Ok(btf)
    }

    /// Byte offset of a member; `path` may lead through embedded structs (`ns.inum`). Members of anonymous structs and
    /// unions are found as in C. `None` when there is no such struct or member, and for bit-fields.
    pub fn member(&self, of: &str, path: &str) -> Option<u32> {
        self.named(kind::STRUCT, of).find_map(|ty| self.member_path(ty, path)).map(|(offset, _)| offset)
    }

    /// Size of a struct in bytes.
    pub fn size(&self, of: &str) -> Option<u32> {
        self.named(kind::STRUCT, of).next().map(|ty| ty.refers)
    }

    /// The id of a struct, counted from 1 as the kernel does.
    pub fn struct_id(&self, name: &str) -> Option<u32> {
        self.named(kind::STRUCT, name).next().and_then(|ty| self.id(ty))
    }

    /// The id of a function that the kernel kept.
    pub fn function_id(&self, name: &str) -> Option<u32> {
        self.named(kind::FUNC, name).next().and_then(|ty| self.id(ty))
    }

    fn id(&self, ty: Type) -> Option<u32> {
        // the first stands for void; the others are in order
        let before = self.types.get(1..)?.binary_search(&ty.at).ok()?;
        u32::try_from(before + 1).ok()
    }

    /// If the member is an array of a struct, that struct's name; if it is a struct, its own.
    pub fn member_struct(&self, of: &str, path: &str) -> Option<&str> {
        let (_, id) = self.named(kind::STRUCT, of).find_map(|ty| self.member_path(ty, path))?;
        let mut ty = self.resolve(id)?;
        if ty.kind == kind::ARRAY {
            ty = self.resolve(word(&self.data, ty.at + 12)?)?;
        }
        (ty.kind == kind::STRUCT).then(|| self.string(ty.name))?
    }

    /// Value of an enumerator of any 32-bit enum.
    pub fn enumerator(&self, name: &str) -> Option<u32> {
        self.of_kind(kind::ENUM).find_map(|ty| {
            (0..ty.vlen).map(|i| ty.at + 12 + 8 * i).find_map(|at| {
                self.is_string(word(&self.data, at)?, name).then(|| word(&self.data, at + 4))?
            })
        })
    }

    /// Arguments of a function that the kernel kept (did not inline everywhere).
    pub fn function_args(&self, name: &str) -> Option<Vec<Arg>> {
        let func = self.named(kind::FUNC, name).next()?;
        self.proto_args(func.refers)
    }

    /// Arguments of a tracepoint: `typedef void (*btf_trace_NAME)(void *, ...)`, without that first one.
    pub fn tracepoint_args(&self, name: &str) -> Option<Vec<Arg>> {
        let typedef = self.named(kind::TYPEDEF, &format!("btf_trace_{name}")).next()?;
        let ptr = self.resolve(typedef.refers)?;
        if ptr.kind != kind::PTR {
            return None;
        }
        let mut args = self.proto_args(ptr.refers)?;
        if args.is_empty() {
            return None;
        }
        args.remove(0);
        Some(args)
    }

    fn proto_args(&self, id: u32) -> Option<Vec<Arg>> {
        let proto = self.resolve(id)?;
        if proto.kind != kind::FUNC_PROTO {
            return None;
        }
        (0..proto.vlen).map(|i| Some(self.arg(word(&self.data, proto.at + 12 + 8 * i + 4)?))).collect()
    }

    fn arg(&self, id: u32) -> Arg {
        let Some(ty) = self.resolve(id) else { return Arg::Other };
        match ty.kind {
            kind::PTR => match self.resolve(ty.refers) {
                Some(to) if to.kind == kind::STRUCT => {
                    Arg::StructPtr(self.string(to.name).unwrap_or_default().to_owned())
                }
                _ => Arg::Ptr,
            },
            kind::INT | kind::ENUM | kind::ENUM64 => Arg::Int(ty.refers),
            _ => Arg::Other,
        }
    }

    fn member_path(&self, mut ty: Type, path: &str) -> Option<(u32, u32)> {
        let mut offset = 0u32;
        let mut id = 0;
        for (i, name) in path.split('.').enumerate() {
            if i > 0 {
                ty = self.resolve(id)?;
            }
            let (at, member) = self.member_of(ty, name, 0)?;
            offset = offset.checked_add(at)?;
            id = member;
        }
        Some((offset, id))
    }

    /// Offset and type id of a member, looked for in anonymous members too.
    fn member_of(&self, ty: Type, name: &str, depth: u32) -> Option<(u32, u32)> {
        if depth > MAX_DEPTH || !matches!(ty.kind, kind::STRUCT | kind::UNION) {
            return None;
        }
        for i in 0..ty.vlen {
            let at = ty.at + 12 + 12 * i;
            let (member_name, id) = (word(&self.data, at)?, word(&self.data, at + 4)?);
            let place = word(&self.data, at + 8)?;
            let (bits, width) = if ty.flag { (place & 0x00ff_ffff, place >> 24) } else { (place, 0) };
            if self.is_string(member_name, name) {
                return (bits % 8 == 0 && width == 0).then_some((bits / 8, id));
            }
            if self.string(member_name) == Some("")
                && let Some(inner) = self.resolve(id)
                && let Some((offset, id)) = self.member_of(inner, name, depth + 1)
            {
                return Some(((bits / 8).checked_add(offset)?, id));
            }
        }
        None
    }

    /// The type behind typedefs, qualifiers and tags.
    fn resolve(&self, mut id: u32) -> Option<Type> {
        for _ in 0..MAX_CHAIN {
            let at = *self.types.get(usize::try_from(id).ok()?).filter(|_| id != 0)?;
            let ty = self.record(at)?;
            match ty.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = ty.refers;
                }
                _ => return Some(ty),
            }
        }
        None
    }

    fn of_kind(&self, kind: u32) -> impl Iterator<Item = Type> {
        let records = self.by_kind.get(kind as usize).map_or(&[][..], Vec::as_slice);
        records.iter().filter_map(|&at| self.record(at))
    }

    fn named<'a>(&'a self, kind: u32, name: &'a str) -> impl Iterator<Item = Type> + 'a {
        self.of_kind(kind).filter(move |ty| self.is_string(ty.name, name))
    }

    fn record(&self, at: usize) -> Option<Type> {
        let info = word(&self.data, at.checked_add(4)?)?;
        Some(Type {
            at,
            name: word(&self.data, at)?,
            kind: (info >> 24) & 0x1f,
            vlen: (info & 0xffff) as usize,
            flag: info >> 31 != 0,
            refers: word(&self.data, at.checked_add(8)?)?,
        })
    }

    fn string(&self, offset: u32) -> Option<&str> {
        let bytes = self.data.get(self.strings..self.strings_end)?.get(offset as usize..)?;
        let end = bytes.iter().position(|&b| b == 0)?;
        std::str::from_utf8(&bytes[..end]).ok()
    }

    /// Compares without looking for the end of the string first: this runs for each type of a kind.
    fn is_string(&self, offset: u32, name: &str) -> bool {
        let Some(bytes) =
            self.data.get(self.strings..self.strings_end).and_then(|s| s.get(offset as usize..))
        else {
            return false;
        };
        bytes.starts_with(name.as_bytes()) && bytes.get(name.len()) == Some(&0)
    }
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..)?.first_chunk::<4>().map(|b| u32::from_ne_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kernel() -> Option<Btf> {
        let data = std::fs::read("/sys/kernel/btf/vmlinux").ok();
        if data.is_none() {
            println!("SKIPPED: this kernel has no /sys/kernel/btf/vmlinux");
        }
        Some(Btf::parse(data?).expect("the kernel's own BTF parses"))
    }

    /// A small image: `struct s { int a; struct { int :8 bits; int c; }; struct t in; }`, `struct t { long x; }`.
    fn image() -> Vec<u8> {
        let strings = b"\0int\0s\0a\0c\0t\0in\0x\0b\0";
        let at = |name: &str| {
            let needle: Vec<u8> = [b"\0", name.as_bytes(), b"\0"].concat();
            u32::try_from(strings.windows(needle.len()).position(|w| w == needle).unwrap() + 1).unwrap()
        };
        let info = |kind: u32, vlen: u32, flag: u32| flag << 31 | kind << 24 | vlen;
        let mut types: Vec<u32> = vec![];
        types.extend([at("int"), info(kind::INT, 0, 0), 4, 32]); // 1
        types.extend([0, info(kind::STRUCT, 2, 1), 8]); // 2, anonymous, with bit-fields
        types.extend([at("b"), 1, 8 << 24]);
        types.extend([at("c"), 1, 32]);
        types.extend([at("t"), info(kind::STRUCT, 1, 0), 8, at("x"), 1, 32]); // 3
        types.extend([at("s"), info(kind::STRUCT, 3, 0), 24]); // 4
        types.extend([at("a"), 1, 0]);
        types.extend([0, 2, 32]);
        types.extend([at("in"), 3, 96]);
        let types: Vec<u8> = types.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let (type_len, str_len) =
            (u32::try_from(types.len()).unwrap(), u32::try_from(strings.len()).unwrap());
        let mut data = MAGIC.to_ne_bytes().to_vec();
        data.extend([1, 0]);
        data.extend([24, 0, type_len, type_len, str_len].iter().flat_map(|w| w.to_ne_bytes()));
        data.extend(types);
        data.extend(strings);
        data
    }

    #[test]
    fn members_are_found_through_anonymous_and_embedded_structs() {
        let btf = Btf::parse(image()).unwrap();
        assert_eq!(btf.member("s", "a"), Some(0));
        assert_eq!(btf.member("s", "c"), Some(8));
        assert_eq!(btf.member("s", "in.x"), Some(16));
        assert_eq!(btf.member("s", "b"), None, "a bit-field has no byte offset");
        assert_eq!(btf.member("s", "nothing"), None);
        assert_eq!(btf.member("nothing", "a"), None);
        assert_eq!(btf.size("s"), Some(24));
        assert_eq!(btf.member_struct("s", "in"), Some("t"));
        assert_eq!(
            (btf.struct_id("t"), btf.struct_id("s"), btf.struct_id("nothing")),
            (Some(3), Some(4), None)
        );
    }

    #[test]
    fn what_is_not_btf_is_refused() {
        assert_eq!(Btf::parse(vec![]).err(), Some(BtfError::Truncated { at: 0 }));
        assert_eq!(Btf::parse(vec![0; 64]).err(), Some(BtfError::Magic(0)));
        let mut data = image();
        data.truncate(40);
        assert!(matches!(Btf::parse(data).err(), Some(BtfError::Truncated { .. })));
    }

    #[test]
    fn this_kernel_describes_its_tasks_and_tracepoints() {
        let Some(btf) = kernel() else { return };
        assert!(btf.member("task_struct", "comm").is_some());
        assert!(btf.member("mm_struct", "pgtables_bytes").is_some(), "inside an anonymous struct");
        assert_eq!(btf.member("task_struct", "no_such_member"), None);
        assert_eq!(btf.enumerator("MM_ANONPAGES"), Some(1));
        assert_eq!(btf.function_args("out_of_memory"), Some(vec![Arg::StructPtr("oom_control".into())]));
        assert_eq!(btf.function_args("no_such_function"), None);
        let args = btf.tracepoint_args("cgroup_mkdir").unwrap();
        assert_eq!(args, [Arg::StructPtr("cgroup".into()), Arg::Ptr]);
        assert_eq!(btf.tracepoint_args("no_such_tracepoint"), None);
    }

    proptest! {
        #[test]
        fn broken_images_never_panic(at in 0usize..400, byte: u8, cut in 0usize..400) {
            let mut data = image();
            let len = data.len();
            data[at % len] = byte;
            data.truncate(len - cut % len);
            if let Ok(btf) = Btf::parse(data) {
                btf.member("s", "in.x");
                btf.member_struct("s", "in");
                btf.enumerator("a");
                btf.tracepoint_args("s");
                btf.function_args("s");
            }
        }

        #[test]
        fn random_bytes_never_panic(mut data: Vec<u8>) {
            data.splice(0..data.len().min(2), MAGIC.to_ne_bytes());
            if let Ok(btf) = Btf::parse(data) {
                btf.member("", "");
            }
        }
    }
}
