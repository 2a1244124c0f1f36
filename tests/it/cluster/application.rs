//! Applications with handlers of a test's own, as processes that can be killed: the test binary runs one of its own tests,
//! which is the application.

use std::ffi::OsString;
use std::process::ExitCode;

use millpond::handler::Handler;

use super::{Cluster, Process};

/// Where such a process finds its arguments.
const ARGUMENTS: &str = "MILLPOND_TEST_ARGUMENTS";

impl Cluster {
    /// Starts a role of the application that is the ignored test of this full name, which calls [`run_with_handler`].
    pub fn start_application(&self, test: &str, role: &str, settings: &[&str]) -> Process {
        let mut args = vec!["millpond".to_owned()];
        args.extend(self.args(role, &[], &[settings, &["log.format=json"]].concat()));
        let arguments = format!("{ARGUMENTS}={}", serde_json::to_string(&args).unwrap());
        let own = std::env::current_exe().unwrap().into_os_string();
        let test = ["--exact", test, "--ignored", "--nocapture"].map(OsString::from);
        let words = [OsString::from("env"), arguments.into(), own].into_iter().chain(test).collect();
        Process::start_program(&self.folder, &self.name(role), words, false)
    }
}

/// The whole of an ignored test that is an application with one handler; nothing, where it is run as a test.
pub fn run_with_handler(consumer: &str, handler: impl Handler + 'static) {
    let Ok(arguments) = std::env::var(ARGUMENTS) else { return };
    let arguments: Vec<String> = serde_json::from_str(&arguments).unwrap();
    let ended =
        millpond::Application::new().handler(consumer, handler).main_from(arguments.into_iter().map(OsString::from));
    assert_eq!(ended, ExitCode::SUCCESS);
}
