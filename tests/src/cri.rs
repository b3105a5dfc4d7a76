//! Kubernetes' image service as kubelet uses it.

use std::path::Path;

use anyhow::{Context, Result};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use self::proto::image_service_client::ImageServiceClient;
pub use self::proto::{AuthConfig, Image};
use self::proto::{ImageSpec, ImageStatusRequest, ListImagesRequest, PullImageRequest, RemoveImageRequest};

pub(crate) mod proto {
    #![expect(unused_qualifications, unreachable_pub, reason = "generated code")]

    tonic::include_proto!("runtime.v1");
}

pub(crate) async fn connect(socket: &Path) -> Result<Channel> {
    let path = socket.to_str().context("the socket's path is not UTF-8")?;
    let channel = Endpoint::try_from(format!("unix:{path}"))?.connect().await;
    channel.with_context(|| format!("cannot connect to {path}"))
}

/// A connection to an image service.
#[derive(Clone, Debug)]
pub struct Client {
    inner: ImageServiceClient<Channel>,
}

impl Client {
    /// Connects to a socket.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let inner = ImageServiceClient::new(connect(socket).await?);
        Ok(Self { inner })
    }

    /// Pulls an image; gives what containers name it by.
    ///
    /// # Errors
    /// As the service answers; likewise everywhere below.
    pub async fn pull(&self, image: &str, auth: Option<AuthConfig>) -> Result<String, Status> {
        let image = spec(image);
        let request = PullImageRequest { image, auth };
        let pulled = self.inner.clone().pull_image(request).await?;
        Ok(pulled.into_inner().image_ref)
    }

    /// What is known of an image, if it is there.
    pub async fn status(&self, image: &str) -> Result<Option<Image>, Status> {
        let image = spec(image);
        let status = self
            .inner
            .clone()
            .image_status(ImageStatusRequest { image })
            .await?;
        Ok(status.into_inner().image)
    }

    /// All images.
    pub async fn list(&self) -> Result<Vec<Image>, Status> {
        let listed = self.inner.clone().list_images(ListImagesRequest {}).await?;
        Ok(listed.into_inner().images)
    }

    /// Removes an image.
    pub async fn remove(&self, image: &str) -> Result<(), Status> {
        let image = spec(image);
        self.inner
            .clone()
            .remove_image(RemoveImageRequest { image })
            .await?;
        Ok(())
    }
}

#[expect(clippy::unnecessary_wraps, reason = "fields of messages are optional")]
pub(crate) fn spec(image: &str) -> Option<ImageSpec> {
    let image = image.to_owned();
    Some(ImageSpec { image })
}
