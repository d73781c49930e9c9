terraform {
  required_version = ">= 1.9"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 6.0, < 8.0"
    }
  }
  # terraform init -backend-config=bucket=NAME -backend-config=prefix=flex-rl
  backend "gcs" {}
}

provider "google" {
  project = var.project
  region  = var.region
}
