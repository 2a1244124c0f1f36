//! One document on its way: the scanner, the output, and the containers (records, arrays, maps).
//!
//! A value that does not fit is passed over to its end and the rest is examined all the same, so that a client learns
//! of everything at once. The pointer of a fault is put together while the calls return, so that sound documents pay
//! nothing for it.

use super::{
    captured::Scratch,
    explain,
    plan::{Field, Node, Record},
    scan::{RawString, Scanner, Syntax},
    wire,
};
use crate::schema::{fault::Fault, limits::MAX_FAULTS};

/// Marks a field that is not yet met, in the list of those put off.
const ABSENT: u32 = u32::MAX;

/// Why a value was not written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stop {
    /// It does not fit its type; the fault is noted, and the scanner stands behind it.
    Value,
    /// The text is not JSON from here on; not noted yet.
    Syntax(Syntax),
    /// Noted, and there is no going on.
    Halt,
    /// A field that was taken for missing came after all; only between a record and its fields.
    Reorder,
}

impl From<Syntax> for Stop {
    fn from(syntax: Syntax) -> Self {
        Self::Syntax(syntax)
    }
}

pub(super) struct Session<'a> {
    pub scan: Scanner<'a>,
    pub out: &'a mut Vec<u8>,
    pub scratch: &'a mut Scratch,
    pub faults: Vec<Fault>,
    /// While a branch of a union is only tried, faults are not put into words.
    pub quiet: bool,
    /// Whether records are taken to have their fields in the schema's order, with some left out, until one has not.
    pub in_order: bool,
}

impl<'a> Session<'a> {
    /// Writes one value; the scanner stands before it.
    pub(super) fn value(&mut self, node: &Node) -> Result<(), Stop> {
        let first = self.scan.next_byte();
        match node {
            Node::Nullable(nullable) => self.nullable(nullable, first),
            Node::Record(record) if first == Some(b'{') => self.record(record),
            Node::Array(items) if first == Some(b'[') => self.array(items),
            Node::Map(types) if first == Some(b'{') => self.map(types),
            Node::Record(_) | Node::Array(_) | Node::Map(_) => self.mismatch(node),
            Node::Union(branches) => self.union(branches),
            _ => self.scalar(node, first),
        }
    }

    /// The scanner stands at the opening brace.
    pub(super) fn record(&mut self, record: &Record) -> Result<(), Stop> {
        let base = self.scratch.put_off.len();
        let start = (self.scan.clone(), self.out.len(), self.faults.len());
        let mut result = self.record_fields(record, base, self.in_order);
        if let Err(Stop::Reorder) = result {
            let (scan, written, mark) = start;
            self.in_order = false;
            self.scan.rewind(&scan);
            self.out.truncate(written);
            self.faults.truncate(mark);
            self.scratch.put_off.truncate(base);
            result = self.record_fields(record, base, false);
        }
        self.scratch.put_off.truncate(base);
        result
    }

    /// Writes fields as they come while they come in the schema's order. When one comes early, those before it are
    /// taken for missing if they may be. If they may not, or the document is not `in_order`, the early one is passed
    /// over and its place noted in `put_off[base..]`, to be written when its turn is there.
    fn record_fields(&mut self, record: &Record, base: usize, in_order: bool) -> Result<(), Stop> {
        self.scan.open()?;
        let fields = &record.fields;
        let mut next = 0;
        let mut sound = true;
        let mut more = !self.scan.close_empty(b'}');
        while more {
            self.scan.next_byte();
            if let Some(field) = fields.get(next).filter(|field| self.scan.eat(&field.quoted)) {
                self.scan.colon()?;
                sound &= self.field(field)?;
                next += 1;
            } else {
                sound &= self.field_out_of_turn(record, base, in_order, &mut next)?;
            }
            self.write_put_off(record, base, &mut next, &mut sound)?;
            more = self.scan.more(b'}')?;
        }
        while let Some(field) = fields.get(next) {
            sound &= self.field_missing(field)?;
            next += 1;
            self.write_put_off(record, base, &mut next, &mut sound)?;
        }
        if sound { Ok(()) } else { Err(Stop::Value) }
    }

    /// Writes one field's value; false if it does not fit.
    fn field(&mut self, field: &Field) -> Result<bool, Stop> {
        if let Some(slot) = field.captured {
            self.scratch.starts[slot] = self.out.len();
        }
        let mark = self.faults.len();
        match self.value(&field.node) {
            Ok(()) => Ok(true),
            Err(stop) => self.child_stopped(stop, mark, || field.name().to_owned()),
        }
    }

    /// A field whose turn has not come or is over, or a stranger; the scanner stands at its name.
    fn field_out_of_turn(
        &mut self,
        record: &Record,
        base: usize,
        in_order: bool,
        next: &mut usize,
    ) -> Result<bool, Stop> {
        let name = self.scan.field_name()?;
        self.scan.colon()?;
        let text = name.text();
        let Some(at) = record.find(&text) else {
            return self.pass_over(&name, |name| explain::unknown_field(record, name));
        };
        if at == *next {
            // Written with escapes.
            *next += 1;
            return self.field(&record.fields[at]);
        }
        if in_order && at < *next {
            return Err(Stop::Reorder);
        }
        let none_put_off = self.scratch.put_off.len() == base;
        if in_order && none_put_off && record.fields[*next..at].iter().all(|field| field.missing.is_some()) {
            for field in &record.fields[*next..at] {
                self.field_missing(field)?;
            }
            *next = at + 1;
            return self.field(&record.fields[at]);
        }
        if none_put_off {
            self.scratch.put_off.resize(base + record.fields.len(), ABSENT);
        }
        if at < *next || self.scratch.put_off[base + at] != ABSENT {
            return self.pass_over(&name, explain::twice);
        }
        self.scan.next_byte();
        self.scratch.put_off[base + at] = self.scan.pos as u32;
        self.scan.skip()?;
        Ok(true)
    }

    /// Writes the fields that were put off and whose turn has come.
    #[inline]
    fn write_put_off(&mut self, record: &Record, base: usize, next: &mut usize, sound: &mut bool) -> Result<(), Stop> {
        while let Some(&at) = self.scratch.put_off.get(base + *next) {
            if at == ABSENT {
                break;
            }
            let here = self.scan.clone();
            self.scan.pos = at as usize;
            *sound &= self.field(&record.fields[*next])?;
            self.scan.rewind(&here);
            *next += 1;
        }
        Ok(())
    }

    fn field_missing(&mut self, field: &Field) -> Result<bool, Stop> {
        if let Some(slot) = field.captured {
            self.scratch.starts[slot] = self.out.len();
        }
        if let Some(bytes) = &field.missing {
            self.out.extend_from_slice(bytes);
            return Ok(true);
        }
        let mark = self.faults.len();
        let stop = self.note(|| explain::missing(&field.node));
        self.child_stopped(stop, mark, || field.name().to_owned())
    }

    /// Passes over the value of a field that has no place, and notes why.
    fn pass_over(&mut self, name: &RawString<'a>, why: impl FnOnce(&str) -> Fault) -> Result<bool, Stop> {
        let mark = self.faults.len();
        let name = String::from_utf8_lossy(&name.text()).into_owned();
        let stop = match self.scan.skip() {
            Ok(_) => self.note(|| why(&name)),
            Err(syntax) => Stop::Syntax(syntax),
        };
        self.child_stopped(stop, mark, || name)
    }

    fn array(&mut self, items: &Node) -> Result<(), Stop> {
        self.scan.open()?;
        let start = self.out.len();
        self.out.push(0);
        if self.scan.close_empty(b']') {
            return Ok(());
        }
        let (mut count, mut sound) = (0, true);
        loop {
            let mark = self.faults.len();
            if let Err(stop) = self.value(items) {
                sound &= self.child_stopped(stop, mark, || count.to_string())?;
            }
            count += 1;
            if !self.scan.more(b']')? {
                break;
            }
        }
        wire::patch_count(self.out, start, count);
        self.out.push(0);
        if sound { Ok(()) } else { Err(Stop::Value) }
    }

    fn map(&mut self, types: &Node) -> Result<(), Stop> {
        self.scan.open()?;
        let start = self.out.len();
        self.out.push(0);
        if self.scan.close_empty(b'}') {
            return Ok(());
        }
        let base = self.scratch.keys.len();
        let (mut count, mut sound) = (0, true);
        loop {
            let key = self.scan.field_name()?;
            self.scan.colon()?;
            let mark = self.faults.len();
            let name = || String::from_utf8_lossy(&key.text()).into_owned();
            if key.nul {
                self.scan.skip()?;
                let stop = self.note(explain::nul);
                sound &= self.child_stopped(stop, mark, name)?;
            } else {
                let text = key.text();
                wire::length(self.out, text.len());
                self.scratch.keys.push((self.out.len(), text.len()));
                self.out.extend_from_slice(&text);
                if let Err(stop) = self.value(types) {
                    sound &= self.child_stopped(stop, mark, name)?;
                }
            }
            count += 1;
            if !self.scan.more(b'}')? {
                break;
            }
        }
        sound &= self.refuse_equal_keys(base)?;
        wire::patch_count(self.out, start, count);
        self.out.push(0);
        if sound { Ok(()) } else { Err(Stop::Value) }
    }

    /// Looks for equal keys among those written since `keys[base..]`, and forgets them.
    fn refuse_equal_keys(&mut self, base: usize) -> Result<bool, Stop> {
        let out = &*self.out;
        let text = |&(at, length): &(usize, usize)| &out[at..at + length];
        let keys = &mut self.scratch.keys[base..];
        keys.sort_unstable_by(|a, b| text(a).cmp(text(b)));
        let twice = keys.windows(2).find(|pair| text(&pair[0]) == text(&pair[1]));
        let twice = twice.map(|pair| String::from_utf8_lossy(text(&pair[0])).into_owned());
        self.scratch.keys.truncate(base);
        let Some(name) = twice else { return Ok(true) };
        let mark = self.faults.len();
        let stop = self.note(|| explain::twice(&name));
        self.child_stopped(stop, mark, || name)
    }

    /// Notes a fault of the value at hand, its pointer still empty.
    pub(super) fn note(&mut self, fault: impl FnOnce() -> Fault) -> Stop {
        if self.quiet {
            return Stop::Value;
        }
        self.faults.push(fault());
        if self.faults.len() >= MAX_FAULTS { Stop::Halt } else { Stop::Value }
    }

    /// Notes a break of the grammar, where the value that contains it is known.
    pub(super) fn note_syntax(&mut self, stop: Stop) -> Stop {
        let Stop::Syntax(syntax) = stop else { return stop };
        let fault = explain::syntax(self.scan.input(), syntax);
        self.note(|| fault);
        Stop::Halt
    }

    /// After a part that was not written: adds its step to the pointers of the faults noted since `mark`. `Ok(false)`
    /// when the rest can be examined.
    fn child_stopped(&mut self, stop: Stop, mark: usize, step: impl FnOnce() -> String) -> Result<bool, Stop> {
        if self.quiet {
            return Err(stop);
        }
        let stop = self.note_syntax(stop);
        let step = step().replace('~', "~0").replace('/', "~1");
        for fault in &mut self.faults[mark..] {
            fault.pointer.insert_str(0, &format!("/{step}"));
        }
        match stop {
            Stop::Value => Ok(false),
            _ => Err(stop),
        }
    }

    /// Passes over a value of the wrong kind and notes it.
    pub(super) fn mismatch(&mut self, node: &Node) -> Result<(), Stop> {
        let found = self.scan.skip()?;
        Err(self.note(|| explain::mismatch(node, found)))
    }
}
