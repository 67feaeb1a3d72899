//! The map of the dashboard: paths, their handlers, and who may come there.
//!
//! It takes no handler that does not begin with a guard, and no action whose form is not checked; the types say so. It knows all that
//! was put into it, so that a test can go everywhere.

use axum::Router;
use axum::handler::Handler;
use axum::routing::{get, post};

use super::Dashboard;
use super::form::Form;

/// Who may come somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// Everybody on the network.
    Anyone,
    /// Everybody who is signed in.
    SignedIn,
    /// Those who have an account.
    Customer,
    /// Operators.
    Operator,
}

/// A proof of who asks, as a handler's argument.
pub(super) trait Guard {
    const WHO: Who;
}

/// The arguments of a handler that begins with a guard.
pub(super) trait Guarded {
    const WHO: Who;
}

/// The arguments of a handler that ends with a checked form.
pub(super) trait Checked {}

macro_rules! arguments {
    ($($between:ident),*) => {
        impl<M, G: Guard, $($between),*> Guarded for (M, G, $($between,)*) {
            const WHO: Who = G::WHO;
        }
        impl<M, G: Guard, $($between),*> Checked for (M, G, $($between,)* Form) {}
    };
}

arguments!();
arguments!(A);
arguments!(A, B);
arguments!(A, B, C);
arguments!(A, B, C, D);

/// A place on the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) who: Who,
}

/// All places.
#[derive(Default)]
pub(super) struct Map {
    router: Router<Dashboard>,
    places: Vec<Place>,
}

impl Map {
    /// Something to see.
    pub(super) fn page<H, T>(mut self, path: &'static str, handler: H) -> Self
    where
        H: Handler<T, Dashboard>,
        T: Guarded + 'static,
    {
        self.places.push(Place { method: "GET", path, who: T::WHO });
        Self { router: self.router.route(path, get(handler)), ..self }
    }

    /// Something to do.
    pub(super) fn action<H, T>(mut self, path: &'static str, handler: H) -> Self
    where
        H: Handler<T, Dashboard>,
        T: Guarded + Checked + 'static,
    {
        self.places.push(Place { method: "POST", path, who: T::WHO });
        Self { router: self.router.route(path, post(handler)), ..self }
    }

    /// A part of the map that another module draws.
    pub(super) fn with(self, part: impl FnOnce(Self) -> Self) -> Self {
        part(self)
    }

    #[cfg(test)]
    pub(super) fn places(&self) -> &[Place] {
        &self.places
    }

    pub(super) fn into_router(self) -> Router<Dashboard> {
        self.router
    }
}
