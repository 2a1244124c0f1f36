//! An answer's body, which knows whether the client took it.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};

use super::connections::UnderWay;

/// An answer's body. Its request is under way for as long as this is there.
pub(super) struct Answer {
    pub(super) body: Body,
    pub(super) under_way: UnderWay,
    /// Whether the body is sent at all.
    pub(super) has_body: bool,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) {
            self.under_way.is_taken();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.has_body || self.body.is_end_stream() {
            self.under_way.is_taken();
        }
    }
}
