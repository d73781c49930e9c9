# Who the machines are: they write logs and metrics, and pull images.
resource "google_service_account" "node" {
  account_id   = "${var.name}-node"
  display_name = "Machines of ${var.name}"
}

resource "google_project_iam_member" "node" {
  for_each = toset(["roles/logging.logWriter", "roles/monitoring.metricWriter", "roles/monitoring.viewer", "roles/stackdriver.resourceMetadata.writer"])
  project  = var.project
  role     = each.value
  member   = google_service_account.node.member
}

resource "google_artifact_registry_repository_iam_member" "node" {
  repository = google_artifact_registry_repository.images.name
  location   = var.region
  role       = "roles/artifactregistry.reader"
  member     = google_service_account.node.member
}

# Who trains: it reads and writes the workspace's bucket, and nothing else. Pods are it by Workload Identity, without a key.
resource "google_service_account" "train" {
  account_id   = "${var.name}-train"
  display_name = "Trainings of ${var.name}"
}

resource "google_storage_bucket_iam_member" "train" {
  bucket = google_storage_bucket.workspace.name
  role   = "roles/storage.objectUser"
  member = google_service_account.train.member
}

resource "google_service_account_iam_member" "train" {
  service_account_id = google_service_account.train.name
  role               = "roles/iam.workloadIdentityUser"
  member             = "serviceAccount:${var.project}.svc.id.goog[flex-rl/flex-rl-train]"
}
