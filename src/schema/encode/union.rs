//! Unions without wrappers: the value alone decides the branch.
//!
//! The first branch, in the schema's order, that takes the value wins. A branch of the wrong JSON kind is never tried:
//! an object cannot be a string. A client that wraps its values as Avro's own JSON does (`{"string": "x"}`) is told so.

use super::{
    explain,
    plan::{Branch, Node, Nullable},
    scan::{Found, Scanner},
    session::{Session, Stop},
    wire,
};

/// What JSON makes of a value, seen from its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Null,
    Boolean,
    Number,
    Text,
    Array,
    Object,
}

impl Kind {
    fn of(first: Option<u8>) -> Option<Self> {
        match first? {
            b'n' => Some(Self::Null),
            b't' | b'f' => Some(Self::Boolean),
            b'-' | b'0'..=b'9' => Some(Self::Number),
            b'"' => Some(Self::Text),
            b'[' => Some(Self::Array),
            b'{' => Some(Self::Object),
            _ => None,
        }
    }
}

/// Whether a value of that kind can be of that type at all.
fn takes(node: &Node, kind: Kind) -> bool {
    match node {
        Node::Null => kind == Kind::Null,
        Node::Boolean => kind == Kind::Boolean,
        Node::Int | Node::Long => kind == Kind::Number,
        Node::Float | Node::Double | Node::Decimal(_) | Node::BigDecimal => matches!(kind, Kind::Number | Kind::Text),
        Node::Array(_) => kind == Kind::Array,
        Node::Map(_) | Node::Record(_) => kind == Kind::Object,
        Node::Nullable(nullable) => kind == Kind::Null || takes(&nullable.branch.node, kind),
        Node::Union(branches) => branches.iter().any(|branch| takes(&branch.node, kind)),
        _ => kind == Kind::Text,
    }
}

impl<'a> Session<'a> {
    pub(super) fn nullable(&mut self, nullable: &Nullable, first: Option<u8>) -> Result<(), Stop> {
        if first == Some(b'n') && self.scan.eat(b"null") {
            self.out.push(nullable.null);
            return Ok(());
        }
        self.out.push(nullable.other);
        let (mark, start) = (self.faults.len(), self.scan.clone());
        let result = self.value(&nullable.branch.node);
        if let Err(Stop::Value) = result
            && !self.quiet
        {
            let branches = std::slice::from_ref(&nullable.branch);
            if let Some(tag) = wrapper(start, branches) {
                self.faults.truncate(mark);
                return Err(self.note(|| explain::wrapped(branches, true, tag)));
            }
            if let [fault] = &mut self.faults[mark..]
                && fault.pointer.is_empty()
            {
                fault.expected.push_str(" or null");
            }
        }
        result
    }

    pub(super) fn union(&mut self, branches: &[Branch]) -> Result<(), Stop> {
        let kind = Kind::of(self.scan.next_byte());
        let fitting =
            || branches.iter().enumerate().filter(|(_, branch)| kind.is_some_and(|kind| takes(&branch.node, kind)));
        let start = self.scan.clone();
        if let (Some((at, branch)), None) = (fitting().next(), fitting().nth(1)) {
            let mark = self.faults.len();
            wire::length(self.out, at);
            let result = self.value(&branch.node);
            if let Err(Stop::Value) = result
                && !self.quiet
                && let Some(tag) = wrapper(start, branches)
            {
                self.faults.truncate(mark);
                return Err(self.note(|| explain::wrapped(branches, false, tag)));
            }
            return result;
        }
        // From here the grammar is known to be sound up to the value's end, so that only the type can be wrong.
        let found = self.scan.skip()?;
        let end = self.scan.clone();
        for (at, branch) in fitting() {
            if self.attempt(&start, at, branch) {
                return Ok(());
            }
        }
        self.scan.rewind(&end);
        if self.quiet {
            return Err(Stop::Value);
        }
        if let Some(tag) = wrapper(start.clone(), branches) {
            return Err(self.note(|| explain::wrapped(branches, false, tag)));
        }
        let closest = self.closest(&start, fitting());
        self.scan.rewind(&end);
        Err(self.note(|| no_branch(branches, found, closest)))
    }

    /// Tries one branch; leaves nothing behind if it does not fit.
    fn attempt(&mut self, start: &Scanner<'a>, at: usize, branch: &Branch) -> bool {
        let written = self.out.len();
        let (put_off, keys) = (self.scratch.put_off.len(), self.scratch.keys.len());
        let quiet = std::mem::replace(&mut self.quiet, true);
        self.scan.rewind(start);
        wire::length(self.out, at);
        let fits = self.value(&branch.node).is_ok();
        self.quiet = quiet;
        if !fits {
            self.out.truncate(written);
            self.scratch.put_off.truncate(put_off);
            self.scratch.keys.truncate(keys);
        }
        fits
    }

    /// The branch with the fewest faults, and the first of them in words.
    fn closest<'b>(
        &mut self,
        start: &Scanner<'a>,
        branches: impl Iterator<Item = (usize, &'b Branch)>,
    ) -> Option<String> {
        let written = self.out.len();
        let (put_off, keys) = (self.scratch.put_off.len(), self.scratch.keys.len());
        let kept = std::mem::take(&mut self.faults);
        let mut best: Option<(usize, String)> = None;
        for (_, branch) in branches {
            self.scan.rewind(start);
            // The result repeats what the faults say.
            let _ = self.value(&branch.node);
            let faults = std::mem::take(&mut self.faults);
            if let Some(first) = faults.first()
                && best.as_ref().is_none_or(|(fewest, _)| faults.len() < *fewest)
            {
                best = Some((faults.len(), explain::closest(&branch.tag, first)));
            }
            self.out.truncate(written);
            self.scratch.put_off.truncate(put_off);
            self.scratch.keys.truncate(keys);
        }
        self.faults = kept;
        best.map(|(_, text)| text)
    }
}

fn no_branch(branches: &[Branch], found: Found<'_>, closest: Option<String>) -> crate::schema::Fault {
    let mut fault = explain::no_branch(branches, found);
    if fault.hint.is_none() {
        fault.hint = closest;
    }
    fault
}

/// The name of the branch that the value at `scan` is wrapped in, if it is an object with that one field.
fn wrapper<'b>(mut scan: Scanner<'_>, branches: &'b [Branch]) -> Option<&'b str> {
    if scan.next_byte() != Some(b'{') {
        return None;
    }
    scan.open().ok()?;
    let name = scan.field_name().ok()?;
    let name = name.text();
    let branch = branches.iter().find(|branch| branch.tag.as_bytes() == &*name)?;
    if let Node::Record(record) = &branch.node
        && record.find(&name).is_some()
    {
        return None;
    }
    scan.colon().ok()?;
    scan.skip().ok()?;
    (!scan.more(b'}').ok()?).then_some(&branch.tag)
}
