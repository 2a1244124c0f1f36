//! Logs and metrics: how Millpond tells what it does. Must not import anything above `domain`.

pub mod logging;
pub mod metrics;

/// What a panic that was caught says.
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
